"""The one table of the tests of peers that do not apply to our classes, and why.

A name may hold `*`. Each must name a test, which must fail or skip itself: see conftest.py.
"""

from suites import CHECKOUT, version

NO_GPU = "needs a GPU, or a library for one"
STRANGERS = "tests what only conversion tables, experts, images or sounds of other models have"
EMBEDS = "gives items to the text embedding, which does not hold them and says so; `BundleMLLMModel.embed` embeds them"

RANKER = {
    "Ranker*.test_*flash_att*": NO_GPU,
    "Ranker*.test_*_offload*": NO_GPU,
    "Ranker*.test_*_with_deepspeed*": NO_GPU,
    "Ranker*.test_can_load_with_*": NO_GPU,
    "Ranker*.test_flex_attention_with_grads": NO_GPU,
    "Ranker*.test_kernels_can_load_without_crashing": NO_GPU,
    "Ranker*.test_model_parallelism": NO_GPU,
    "Ranker*.test_sdpa_can_compile_dynamic": NO_GPU,
    "Ranker*.test_sdpa_can_dispatch_on_flash": NO_GPU,
    "Ranker*.test_torch_compile_for_training": NO_GPU,
    "Ranker*.test_can_load_from_already_mapped_keys": STRANGERS,
    "Ranker*.test_eager_matches_batched_and_grouped_inference*": STRANGERS,
    "Ranker*.test_encoder_decoder_loss_no_double_shift": STRANGERS,
    "Ranker*.test_keep_in_fp32_modules*": STRANGERS,
    "Ranker*.test_model_rope_with_partial_rotation": STRANGERS,
    "Ranker*.test_moe_models_record_router_logits": STRANGERS,
    "Ranker*.test_output_router_logits_from_config": STRANGERS,
    "Ranker*.test_resize_position_vector_embeddings": STRANGERS,
    "Ranker*.test_reverse_loading_mapping": STRANGERS,
    "Ranker*.test_sdpa_can_dispatch_composite_models": STRANGERS,
    "Ranker*.test_sdpa_can_dispatch_non_composite_models": STRANGERS,
    "Ranker*.test_sliding_window_mask": STRANGERS,
    "Ranker*.test_vision_axial_rope": STRANGERS,
    "Ranker*.test_torch_save_load": "calls a dictionary where a model has a boolean buffer (the catalog's mask)",
    "RankerItems*.test_inputs_embeds*": EMBEDS,
}
RANKER_OF_5_24 = {
    "Ranker*.test_bc_cache_name_forward": "wants a warning for the older name of the cache, which peft still "
    "gives: its users could not act on it",
}
NO_TOKENS = "the retriever reads catalog rows: it has no tokens, attention, hidden states, cache or head"
RETRIEVER = {
    "Retriever*.test_*flash_att*": NO_GPU,
    "Retriever*.test_*_offload*": NO_GPU,
    "Retriever*.test_can_load_with_*": NO_GPU,
    "Retriever*.test_kernels_can_load_without_crashing": NO_GPU,
    "Retriever*.test_model_parallelism": NO_GPU,
    "Retriever*.test_torch_compile_for_training": NO_GPU,
    "Retriever*.test_can_load_from_already_mapped_keys": STRANGERS,
    "Retriever*.test_eager_matches_batched_and_grouped_inference*": STRANGERS,
    "Retriever*.test_keep_in_fp32_modules*": STRANGERS,
    "Retriever*.test_moe_models_record_router_logits": STRANGERS,
    "Retriever*.test_output_router_logits_from_config": STRANGERS,
    "Retriever*.test_reverse_loading_mapping": STRANGERS,
    "Retriever*.test_tp_plan_matches_params": STRANGERS,
    "Retriever*.test_*sdpa*": NO_TOKENS,
    "Retriever*.test_attention_outputs": NO_TOKENS,
    "Retriever*.test_attn_implementation_composite_models": NO_TOKENS,
    "Retriever*.test_can_capture_specific_layers_hidden_states": NO_TOKENS,
    "Retriever*.test_can_set_attention_dynamically*": NO_TOKENS,
    "Retriever*.test_capture_outputs_decorator": NO_TOKENS,
    "Retriever*.test_causal_lm_loss_honors_shift_labels": NO_TOKENS,
    "Retriever*.test_enable_input_require_grads_with_gradient_checkpointing": NO_TOKENS,
    "Retriever*.test_encoder_decoder_loss_no_double_shift": NO_TOKENS,
    "Retriever*.test_flex_attention_with_grads": NO_TOKENS,
    "Retriever*.test_hidden_states_output": NO_TOKENS,
    "Retriever*.test_inputs_embeds*": NO_TOKENS,
    "Retriever*.test_internal_model_config_and_subconfig_are_same": NO_TOKENS,
    "Retriever*.test_model_get_set_embeddings": NO_TOKENS,
    "Retriever*.test_model_outputs_equivalence": NO_TOKENS,
    "Retriever*.test_model_rope_*": NO_TOKENS,
    "Retriever*.test_resize_*": NO_TOKENS,
    "Retriever*.test_retain_grad_hidden_states_attentions": NO_TOKENS,
    "Retriever*.test_sliding_window_mask": NO_TOKENS,
    "Retriever*.test_vision_axial_rope": NO_TOKENS,
}
RETRIEVER_OF_5_23 = {"Retriever*.test_tied_head_has_a_tp_plan_entry": STRANGERS}
RETRIEVER_OF_5_24 = {
    "Retriever*.test_bc_cache_name_forward": NO_TOKENS,
    "Retriever*.test_multimodal_outputs_are_returned": STRANGERS,
}
NO_MEDIA = "the processor reads no pictures, sounds or videos: their features come from encoders"
NO_TEXT = "the retriever's processor reads questions alone: it has no tokenizer"
OUR_CALL = "our processor's fields and arguments share names: an argument that is None means the field"
PROCESSOR = {
    "ProcessorTest.test_apply_chat_template_audio*": NO_MEDIA,
    "ProcessorTest.test_apply_chat_template_decoded_video*": NO_MEDIA,
    "ProcessorTest.test_apply_chat_template_image*": NO_MEDIA,
    "ProcessorTest.test_apply_chat_template_video*": NO_MEDIA,
    "ProcessorTest.test_args_overlap_kwargs": NO_MEDIA,
    "ProcessorTest.test_chat_template_audio_*": NO_MEDIA,
    "ProcessorTest.test_get_num_multimodal_tokens_*": NO_MEDIA,
    "ProcessorTest.test_*_images": NO_MEDIA,
    "ProcessorTest.test_*_videos": NO_MEDIA,
    "ProcessorTest.test_*_?_audio": NO_MEDIA,
    "ProcessorTest.test_processor_text_has_no_visual": NO_MEDIA,
    "ProcessorTest.test_processor_with_multiple_inputs": NO_MEDIA,
    "ProcessorTest.test_replacement_offsets": NO_MEDIA,
    "ProcessorTest.test_apply_chat_template_assistant_mask": "its template reads parts of messages, which are joined "
    "to texts before: templates of language models read these",
    "ProcessorTest.test_chat_template_jinja_kwargs": "as above: its template reads parts of messages",
    "ProcessorTest.test_apply_chat_template_tool_calls_no_content": "the template of the test has no tools",
    "ProcessorTest.test_call_arguments_not_in_*": OUR_CALL,
    "ProcessorTest.test_init_arguments_not_in_class_attributes": "`chat_template` is a property, the tokenizer's",
    "ProcessorTest.test_init_arguments_not_in_processor_kwargs": OUR_CALL,
    "ItemProcessorTest.test_*chat_template*": NO_TEXT,
    "ItemProcessorTest.test_args_overlap_kwargs": NO_TEXT,
    "ItemProcessorTest.test_get_num_multimodal_tokens_*": NO_TEXT,
    "ItemProcessorTest.test_*_images": NO_TEXT,
    "ItemProcessorTest.test_*_videos": NO_TEXT,
    "ItemProcessorTest.test_*_?_audio": NO_TEXT,
    "ItemProcessorTest.test_if_input_has_mismatching_tokens_and_mm_data": NO_TEXT,
    "ItemProcessorTest.test_processor_text_has_no_visual": NO_TEXT,
    "ItemProcessorTest.test_processor_with_multiple_inputs": NO_TEXT,
    "ItemProcessorTest.test_replacement_offsets": NO_TEXT,
    "ItemProcessorTest.test_save_load_pretrained_additional_features": NO_TEXT,
    "ItemProcessorTest.test_subprocessor_defaults_0_text": NO_TEXT,
    "ItemProcessorTest.test_tokenizer_decode_defaults": NO_TEXT,
}
PROCESSOR_OF_5_24 = {"ProcessorTest.test_chat_template_message_objects": NO_MEDIA}
TOKENIZER = {
    "TokenizerTest.test_chat_template_save_loading": "wants an `__init__`, which this class must not have",
    "TokenizerTest.test_integration*": "compares with the tokens of one published vocabulary",
    "TokenizerBackendTest.test_rust_tokenizer_add_prefix_space_0": "fails for transformers' base class, too: it does "
    "not change the pre-tokenizer of a tokenizer.json",
}
NO_GRAPH = "wants a graph of fixed shape; which items occur is read while the model runs"
GENERATION = {
    "Ranker*.test_eager_matches_fa?_generate": NO_GPU,
    "Ranker*.test_model_parallel_beam_search": NO_GPU,
    "Ranker*.test_generate_with_quant_cache": NO_GPU,
    "Ranker*.test_custom_4d_attention_mask": NO_GRAPH,
    "Ranker*.test_generate_compilation_all_outputs": NO_GRAPH,
    "Ranker*.test_generate_compile_model_forward_fullgraph": NO_GRAPH,
    "Ranker*.test_generate_from_inputs_embeds_with_static_cache": NO_GRAPH,
    "Ranker*.test_generate_with_static_cache": NO_GRAPH,
    "Ranker*.test_static_cache_no_recompile_with_smaller_length": NO_GRAPH,
    "Ranker*.test_generate_with_mtp": STRANGERS,
    "Ranker*.test_recurrent_layers_mask_padding_on_continued_forward": STRANGERS,
    "RankerItems*.test_generate_from_*inputs_embeds*": EMBEDS,
}
OTHER_METHODS = "peft has it for other methods alone"
LAYERS_BY_NAME = "reads layers of the published model that it names"
ADAPTERS = {
    "TestAdapters*.test_add_adapter_no_autocast_adapter_dtype*-tuning*": OTHER_METHODS,
    "TestAdapters*.test_adding_multiple_adapters_with_bias_raises*ia3*": OTHER_METHODS,
    "TestAdapters*.test_adding_multiple_adapters_with_bias_raises*-tuning*": OTHER_METHODS,
    "TestAdapters*.test_*mixed_adapter_batches*dora*": OTHER_METHODS,
    "TestAdapters*.test_*mixed_adapter_batches*ia3*": OTHER_METHODS,
    "TestAdapters*.test_*mixed_adapter_batches*-tuning*": OTHER_METHODS,
    "TestAdapters*.test_merge_layers*-tuning*": OTHER_METHODS,
    "TestAdapters*.test_prompt_tuning_*_prepare_for_training*[dl]ora*": OTHER_METHODS,
    "TestAdapters*.test_prompt_tuning_*_prepare_for_training*ia3*": OTHER_METHODS,
    "TestAdapters*.test_prompt_tuning_*_prepare_for_training*prefix*": OTHER_METHODS,
    "TestAdapters*.test_set_requires_grad_prompt_learning_raises*[dl]ora*": OTHER_METHODS,
    "TestAdapters*.test_set_requires_grad_prompt_learning_raises*ia3*": OTHER_METHODS,
    "TestAdapters*.test_training_decoders_gradient_checkpointing*prefix*": OTHER_METHODS,
    "TestAdapters*.test_training_decoders_layer_indexing*ia3*": OTHER_METHODS,
    "TestAdapters*.test_training_decoders_layer_indexing*-tuning*": OTHER_METHODS,
    "TestAdapters*.test_training_prompt_learning_tasks*[dl]ora*": OTHER_METHODS,
    "TestAdapters*.test_training_prompt_learning_tasks*ia3*": OTHER_METHODS,
    "TestAdapters*.test_weighted_combination_of_adapters*-tuning*": OTHER_METHODS,
    "TestAdapters*.test_lora_embed_scale_is_applied*": LAYERS_BY_NAME,
    "TestAdapters*.test_lora_layer_replication": LAYERS_BY_NAME,
    "TestAdapters*.test_merge_and_unload_fixes_tie_word_embeddings_config": LAYERS_BY_NAME,
    "TestAdapters*.test_prefix_tuning_gemma4_*_layers_skipped": LAYERS_BY_NAME,
    "TestAdapters*.test_prompt_tuning_trust_remote_code": LAYERS_BY_NAME,
    "TestAdapters*.test_save_pretrained_targeting_lora_to_embedding_layer*auto?": LAYERS_BY_NAME,
    "TestAdapters*.test_save_pretrained_targeting_lora_to_embedding_layer*True?": LAYERS_BY_NAME,
    "TestAdaptersItems.test_disable_adapter*prompt-tuning*": EMBEDS,
    "TestAdaptersItems.test_generate?prompt-tuning*": EMBEDS,
    "TestAdaptersItems.test_generate_pos_args*prompt-tuning*": EMBEDS,
    "TestAdaptersItems.test_inference_safetensors*prompt-tuning*": EMBEDS,
    "TestAdaptersItems.test_passing_input_embeds_works*": EMBEDS,
    "TestAdaptersItems.test_prepare_for_training_parametrized*": EMBEDS,
    "TestAdaptersItems.test_prompt_tuning_*_prepare_for_training*prompt-tuning*": EMBEDS,
    "TestAdaptersItems.test_training_decoders*prompt-tuning*": EMBEDS,
    "TestAdaptersItems.test_training_prompt_learning_tasks*prompt-tuning*": EMBEDS,
}
NOT_APPLICABLE = RANKER | RETRIEVER | PROCESSOR | TOKENIZER | ADAPTERS | (GENERATION if CHECKOUT else {})
if version("transformers") < "5.24":
    NOT_APPLICABLE |= RETRIEVER_OF_5_23
else:
    NOT_APPLICABLE |= RANKER_OF_5_24 | RETRIEVER_OF_5_24 | PROCESSOR_OF_5_24
"""Reason of each test that does not apply."""
