"""Sizes and weights of tiny random models."""

import torch

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION |= {"image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"vocab_size": 99, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}


def seeded(make):
    """Make a model of random weights, the same each time, and leave the generator as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        for parameter in model.parameters():  # so that no two pictures look alike to it
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model.eval()
