"""Fusion and projector: the formulas of the paper, item by item, with any modality absent."""

import torch
from tiny_models import MODALITIES, make_backbone, make_features, make_model

from bundle_mllm.modeling import BundleMLLMConfig, BundleMLLMForCausalLM
from bundle_mllm.modeling.items_bundle_mllm import BundleMLLMFusion


def unit(vector):
    return vector / vector.norm()


def make_fusion(**fields):
    torch.manual_seed(0)
    return BundleMLLMFusion(BundleMLLMConfig(**{"modalities": MODALITIES, "fusion_hidden_size": 8, **fields}))


def by_hand(fusion, features, present):
    """One item at a time, one modality at a time, straight from the formula."""
    fused = []
    for row in range(len(present)):
        codes = []
        for column, name in enumerate(sorted(features)):
            x, encoder = features[name][row], fusion.encoders[name]
            if not present[row, column]:
                continue
            if name == "visual":
                x = unit(x)
                for layer in (encoder.linear_1, encoder.linear_2):
                    x = (layer.weight @ x + layer.bias).clamp(min=0)
                encoder = encoder.linear_3
            codes.append(unit(encoder.weight @ x + encoder.bias))
        total = torch.zeros(8)
        for query in codes:
            scores = [(fusion.query.weight @ query) @ (fusion.key.weight @ key) * 8**-0.5 for key in codes]
            weights = torch.stack(scores).softmax(0)
            total = total + sum(weight * code for weight, code in zip(weights, codes, strict=True))
        fused.append(total / len(codes) if codes else fusion.no_features.weight[0])
    return torch.stack(fused)


def test_fusion_equals_the_formula_whatever_is_present():
    fusion, features = make_fusion(), make_features(num_items=4)
    present = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    expected = by_hand(fusion, features, present)
    assert torch.allclose(fusion(features, present), expected, atol=1e-6)


def test_what_an_absent_row_holds_has_no_effect():
    fusion, features = make_fusion(), make_features(num_items=2)
    present = torch.tensor([[True, False], [True, True]])
    expected = fusion(features, present)
    features["visual"][0] = torch.nan
    assert torch.allclose(fusion(features, present), expected, atol=1e-6)


def test_an_item_without_features_is_learned_and_not_zero():
    fusion, features = make_fusion(), make_features(num_items=1)
    fused = fusion(features, torch.zeros(1, 2, dtype=torch.bool))
    assert torch.equal(fused, fusion.no_features.weight) and fused.abs().sum() > 0
    fused.sum().backward()
    assert fusion.no_features.weight.grad.abs().sum() > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in fusion.parameters())


def test_each_option_of_the_fusion_changes_it():
    features, present = make_features(num_items=3), torch.ones(3, 2, dtype=torch.bool)
    plain = make_fusion()
    for option in ("fusion_layer_norm", "fusion_value_map"):
        other = make_fusion(**{option: True})
        other.load_state_dict(plain.state_dict(), strict=False)
        assert not torch.allclose(plain(features, present), other(features, present), atol=1e-3), option


def test_standardizing_equals_standardized_features():
    plain = make_model(mlp_modalities=[])
    standardizing = make_model(mlp_modalities=[], standardize_features=True)
    standardizing.model.fusion.load_state_dict(plain.model.fusion.state_dict(), strict=False)
    raw = {name: 5 * matrix + 3 for name, matrix in make_features().items()}
    present = {"visual": torch.tensor([True] * 6 + [False] * 2)}
    standardizing.set_catalog(raw, present, fit_statistics=True)
    seen = {"visual": raw["visual"][:6], "user_item": raw["user_item"]}
    plain.set_catalog({k: (raw[k] - v.mean(0)) / v.std(0, correction=0) for k, v in seen.items()}, present)
    rows = torch.arange(8)
    fused = standardizing.model.fusion(*standardizing.model.catalog.gather(rows))
    assert torch.allclose(fused, plain.model.fusion(*plain.model.catalog.gather(rows)), atol=1e-5)


def test_half_precision_normalizes_without_overflow():
    model = make_model().to(torch.float16)
    features = {name: 300 * matrix for name, matrix in make_features().items()}
    model.set_catalog({name: matrix.half() for name, matrix in features.items()})
    embeddings = model.get_item_embeddings(torch.arange(8))
    assert embeddings.dtype == torch.float16 and embeddings.isfinite().all()
    exact = make_model()
    exact.set_catalog(features)
    assert torch.allclose(embeddings.float(), exact.get_item_embeddings(torch.arange(8)), atol=2e-2)


def test_normalized_item_embeddings_start_at_the_scale_of_the_backbones_embeddings():
    backbone = make_backbone()
    backbone.get_input_embeddings().weight.data.normal_(std=0.3)
    for scale in (1.0, 1e3):
        model = BundleMLLMForCausalLM.from_backbone(backbone, modalities={"visual": 4}, normalize_item_embeddings=True)
        model.set_catalog({"visual": scale * torch.randn(5, 4)})
        found = model.get_item_embeddings(torch.arange(5)).square().mean(dim=-1).sqrt()
        assert torch.allclose(found, torch.full((5,), 0.3), rtol=0.1)
