"""Sounds through CLAP: our vectors are those of transformers and of laion-clap, and no sound stops a run."""

import sys
import types
import zipfile

import numpy as np
import pytest
import soundfile
import torch
import transformers
from tiny_encoders import TEXT, seeded
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

from bundle_mllm.data import DatasetFolder, write_records
from bundle_mllm.encoders import encode_folder
from bundle_mllm.encoders.laion import import_checkpoint
from bundle_mllm.encoders.media import read_sound
from bundle_mllm.errors import BundleMLLMError

TINY_TEXT = {**TEXT, "type_vocab_size": 1, "projection_dim": 24}
TINY_TEXT |= {"hidden_size": 64, "num_attention_heads": 1}  # heads are 64 wide, as in RoBERTa
TINY_AUDIO = {"patch_embeds_hidden_size": 16, "hidden_size": 64, "depths": [1, 2, 1], "num_attention_heads": [1, 2, 2]}
TINY_AUDIO |= {"projection_dim": 24}


def make_clap(fused=False):
    audio = TINY_AUDIO | ({"enable_fusion": True, "fusion_type": "aff_2d"} if fused else {})
    config = ClapConfig(audio_config=audio, text_config=TINY_TEXT, projection_dim=24)
    return seeded(lambda: ClapModel(config))


@pytest.fixture(scope="module", params=["unfused", "fused"])
def clap_folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    make_clap(fused=request.param == "fused").save_pretrained(folder)
    ClapFeatureExtractor(truncation="fusion" if request.param == "fused" else "rand_trunc").save_pretrained(folder)
    return folder


def stored(folder):
    features, present = DatasetFolder.open(folder).features(["acoustic"]).load()
    return features["acoustic"], present["acoustic"]


def test_vectors_are_the_mean_of_what_the_model_hears_in_each_window(clap_folder, gallery):
    summary = encode_folder(gallery, acoustic=f"clap:{clap_folder}", batch_size=5)["acoustic"]
    assert (summary.encoder, summary.dim, summary.num_present) == (f"clap:{clap_folder.name}", 24, 12)
    features, _ = stored(gallery)
    model = ClapModel.from_pretrained(clap_folder).eval()
    extractor = ClapFeatureExtractor.from_pretrained(clap_folder)
    for row, item in enumerate(DatasetFolder.open(gallery).catalog):
        windows = read_sound(gallery / item.audio, rate=48_000, seconds=10, max_windows=30)[0]
        assert len(windows) == (2 if row % 3 == 2 else 1)  # 12 s are two windows of 10 s
        embeddings = []
        for window in windows:
            inputs = extractor(window.astype("float32"), sampling_rate=48_000, return_tensors="pt")
            inputs["is_longer"] = torch.zeros(1, 1, dtype=torch.bool)
            with torch.inference_mode():
                embeddings.append(model.get_audio_features(**inputs).pooler_output[0])
        expected = torch.nn.functional.normalize(torch.stack(embeddings).mean(dim=0), dim=0)
        torch.testing.assert_close(features[row], expected, rtol=0, atol=5e-6)
    assert features[0].dot(features[1]) < 0.9999


def test_a_long_sound_is_covered_by_windows_and_a_very_long_one_sampled_evenly(tmp_path):
    time = np.arange(95_000) / 1_000  # 95 s, whose value is its time
    soundfile.write(tmp_path / "ramp.wav", time / 100, 1_000, subtype="FLOAT")

    def starts(**arguments):
        windows = read_sound(tmp_path / "ramp.wav", rate=1_000, **arguments)[0]
        return [int(100 * window[0] + 1e-3) for window in windows], [len(window) for window in windows]

    assert starts(seconds=10, max_windows=30) == ([row * 85 // 9 for row in range(10)], [10_000] * 10)
    assert starts(seconds=10, max_windows=3) == ([0, 42, 85], [10_000] * 3)
    assert starts(seconds=10, max_windows=1) == ([0], [10_000])
    assert starts(seconds=100, max_windows=30) == ([0], [95_000])


def test_a_tone_keeps_its_pitch_whatever_its_rate_and_its_channels(tmp_path):
    for rate in (8_000, 11_025, 44_100, 96_000):
        tone = np.sin(2 * np.pi * 1_000 * np.arange(rate) / rate)
        soundfile.write(tmp_path / "tone.wav", np.stack([tone, 0 * tone], axis=1), rate)
        ((window,), _) = read_sound(tmp_path / "tone.wav", rate=48_000, seconds=10)
        assert len(window) == 48_000
        spectrum = np.abs(np.fft.rfft(window))
        assert spectrum.argmax() == 1_000
        assert window[1_000:-1_000].max() == pytest.approx(0.5, abs=0.01)  # the mean of both channels


def test_unusual_sounds_are_used_with_a_note_and_unusable_ones_left_out(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, 20_000)
    for name, samples, options in (
        ("good.wav", noise, {}),
        ("stereo.flac", np.stack([noise, noise], axis=1), {}),
        ("surround.wav", np.stack([noise] * 6, axis=1), {}),
        ("silent.wav", 0 * noise, {}),
        ("offset.wav", 0 * noise + 0.5, {}),
        ("short.wav", noise[:900], {}),
        ("nan.wav", np.where(noise > 0.2, np.nan, noise), {"subtype": "FLOAT"}),
    ):
        soundfile.write(folder / name, samples, 16_000, **options)
    soundfile.write(folder / "flac.wav", noise, 16_000, format="FLAC")
    soundfile.write(folder / "whole.mp3", noise, 16_000)
    soundfile.write(folder / "whole.flac", noise, 16_000)
    for whole, cut in (("good.wav", "cut.wav"), ("whole.mp3", "cut.mp3"), ("whole.flac", "cut.flac")):
        content = (folder / whole).read_bytes()
        (folder / cut).write_bytes(content[: len(content) // 2])
    streamed = bytearray((folder / "good.wav").read_bytes())  # as a program writes into a pipe: the length unknown
    streamed[4:8] = streamed[40:44] = b"\xff\xff\xff\xff"
    (folder / "streamed.wav").write_bytes(streamed)
    (folder / "text.wav").write_text("no sound at all")
    (folder / "empty.wav").touch()
    (folder / "bare.raw").write_bytes(bytes(range(256)))
    names = [path.name for path in sorted(folder.iterdir())] + ["gone.wav"]
    write_records(folder / "items.jsonl", [{"item_id": name, "audio": name} for name in names])
    write_records(folder / "bundles.jsonl", [{"bundle_id": "b", "items": names[:2], "split": "train"}])
    make_clap().save_pretrained(tmp_path / "model")
    ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(tmp_path / "model")
    summary = encode_folder(folder, acoustic=f"clap:{tmp_path / 'model'}")["acoustic"]
    truncated = "truncated: its header names more samples than it holds"
    assert {(group.reason, group.used, *group.first) for group in summary.issues} == {
        (truncated, False, "cut.mp3", "cut.wav"),
        ("a damaged sound", False, "cut.flac"),
        ("silent", False, "offset.wav", "silent.wav"),
        ("shorter than 0.1 seconds", False, "short.wav"),
        ("samples of NaN or infinity", False, "nan.wav"),
        ("not a sound that soundfile reads", False, "bare.raw", "text.wav"),
        ("the file is empty", False, "empty.wav"),
        ("no such file", False, "gone.wav"),
        ("FLAC under the name of another format", True, "flac.wav"),
        ("more than 2 channels, averaged", True, "surround.wav"),
    }
    features, present = stored(folder)
    used = ["flac.wav", "good.wav", "stereo.flac", "streamed.wav", "surround.wav", "whole.flac", "whole.mp3"]
    assert [names[row] for row in present.nonzero()[:, 0]] == used
    for name in set(used) - {"whole.mp3"}:  # all hold the same sound
        assert features[names.index(name)].dot(features[names.index("good.wav")]) > 0.9999
    assert features[names.index("whole.mp3")].dot(features[names.index("good.wav")]) > 0.99


def test_a_model_that_is_no_clap_is_one_line(gallery, tmp_path):
    transformers.BertConfig(**TEXT).save_pretrained(tmp_path)
    for model, message in ((tmp_path, "is of type 'bert': give a CLAP model"), ("no/such", "cannot be loaded")):
        with pytest.raises(BundleMLLMError, match=message) as caught:
            encode_folder(gallery, acoustic=f"clap:{model}")
        assert "\n" not in str(caught.value)


def laion_state(fused):
    """Return (LAION's name, our name or None, tensor) for each key of a small checkpoint as laion-clap writes it."""
    model = make_clap(fused)
    state = model.state_dict()
    keys = [("logit_scale_a", "logit_scale_a"), ("logit_scale_t", "logit_scale_t")]
    for tower in ("audio", "text"):
        for number, layer in ((0, "linear1"), (2, "linear2")):
            for kind in ("weight", "bias"):
                keys.append((f"{tower}_projection.{number}.{kind}", f"{tower}_projection.{layer}.{kind}"))
    audio, ours = "audio_branch", "audio_model.audio_encoder"
    for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        keys.append((f"{audio}.bn0.{kind}", f"{ours}.batch_norm.{kind}"))
    same = ("patch_embed.", "norm.")
    keys += [
        (f"{audio}.{n.removeprefix(ours + '.')}", n) for n in state if n.startswith(tuple(f"{ours}.{s}" for s in same))
    ]
    parts = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense"}
    parts |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    source = {}
    for layer, depth in enumerate(TINY_AUDIO["depths"]):
        for block in range(depth):
            place = f"layers.{layer}.blocks.{block}"
            for theirs, part in parts.items():
                for kind in ("weight", "bias"):
                    keys.append((f"{audio}.{place}.{theirs}.{kind}", f"{ours}.{place}.{part}.{kind}"))
            for kind in ("relative_position_bias_table", "relative_position_index"):
                keys.append((f"{audio}.{place}.attn.{kind}", f"{ours}.{place}.attention.self.{kind}"))
            for kind in ("weight", "bias"):
                joint = [state[f"{ours}.{place}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
                source[f"{audio}.{place}.attn.qkv.{kind}"] = torch.cat(joint)
            source[f"{audio}.{place}.attn_mask"] = torch.zeros(4, 64, 64)
        if layer + 1 < len(TINY_AUDIO["depths"]):
            for part in ("norm.weight", "norm.bias", "reduction.weight"):
                keys.append((f"{audio}.layers.{layer}.downsample.{part}", f"{ours}.layers.{layer}.downsample.{part}"))
    keys += [(f"text_branch.{n.removeprefix('text_model.')}", n) for n in state if n.startswith("text_model.")]
    source |= {theirs: state[name] for theirs, name in keys}
    extra = ("tscam_conv.weight", "head.weight", "spectrogram_extractor.stft.conv_real.weight")
    source |= {f"{audio}.{name}": torch.zeros(2) for name in extra}
    source |= {f"{tower}_transform.sequential.0.weight": torch.zeros(2) for tower in ("audio", "text")}
    filters = ClapFeatureExtractor(frequency_min=50, frequency_max=14_000).mel_filters_slaney
    source[f"{audio}.logmel_extractor.melW"] = torch.from_numpy(filters).float()
    del source["text_branch.embeddings.token_type_ids"]  # which transformers computes
    return {f"module.{name}": value for name, value in source.items()}, model


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_a_checkpoint_of_laion_gives_every_weight_of_the_model(fused, tmp_path, gallery):
    state, model = laion_state(fused)
    metrics = {"epoch": 3, "name": "best", "top": np.float64(0.5), "count": np.int64(7)}  # as its files hold them
    torch.save({**metrics, "state_dict": state}, tmp_path / "new.pt")
    with zipfile.ZipFile(tmp_path / "new.pt") as new, zipfile.ZipFile(tmp_path / "clap.pt", "w") as old:
        for part in new.infolist():
            content = new.read(part)
            assert not part.filename.endswith("data.pkl") or b"numpy._core.multiarray" in content
            old.writestr(part, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))  # before numpy 2
    read, extractor = import_checkpoint(str(tmp_path / "clap.pt"))
    expected = model.state_dict()
    assert read.state_dict().keys() == expected.keys()
    for name, value in read.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert extractor.truncation == ("fusion" if fused else "rand_trunc")
    assert encode_folder(gallery, acoustic=f"laion:{tmp_path / 'clap.pt'}")["acoustic"].encoder == "laion:clap.pt"
    ours = stored(gallery)[0].clone()
    model.save_pretrained(tmp_path / "model")
    extractor.save_pretrained(tmp_path / "model")
    encode_folder(gallery, acoustic=f"clap:{tmp_path / 'model'}")
    assert torch.equal(stored(gallery)[0], ours)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("module.audio_projection.0.bias"), r"lacks 1 weights \(audio_projection\.linear1\.bias"),
        (lambda s: s.pop("module.audio_branch.norm.weight"), r"lacks the weight 'audio_model\.audio_encoder\.norm"),
        (lambda s: s.update(surprise=torch.zeros(1)), r"holds beyond what is known 1 weights \(surprise"),
        (lambda s: s.update({"module.audio_projection.0.bias": torch.zeros(3)}), r"misshapes 1 weights"),
        (
            lambda s: [s.pop(k) for k in list(s) if "layers" in k],
            r"lacks the weight 'audio_model\.audio_encoder\.layers\.0",
        ),
        (lambda s: s["module.audio_branch.logmel_extractor.melW"].mul_(2), "trained on other mel filters"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(change, message, tmp_path):
    state, _ = laion_state(fused=False)
    change(state)
    torch.save({"state_dict": state}, tmp_path / "clap.pt")
    with pytest.raises(BundleMLLMError, match=message):
        import_checkpoint(str(tmp_path / "clap.pt"))


def test_a_checkpoint_that_would_run_code_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "trapped"), "w"))

    torch.save({"state_dict": {}, "trap": Trap()}, tmp_path / "clap.pt")
    with pytest.raises(BundleMLLMError, match="cannot be read as tensors alone"):
        import_checkpoint(str(tmp_path / "clap.pt"))
    assert not (tmp_path / "trapped").exists()
    for path, message in (("nowhere.pt", "There is no file"), ("junk.pt", "cannot be read as tensors alone")):
        (tmp_path / "junk.pt").write_bytes(b"junk")
        with pytest.raises(BundleMLLMError, match=message):
            import_checkpoint(str(tmp_path / path))


@pytest.mark.parametrize("fused", [False, True])
def test_embeddings_are_those_of_laion_clap(fused, tmp_path, gallery, monkeypatch):
    """Its smallest audio model with random weights and a one-layer RoBERTa, saved and read back by both."""
    laion_clap = import_laion_clap(monkeypatch)
    from clap_module import create_model

    theirs = laion_clap.CLAP_Module.__new__(laion_clap.CLAP_Module)
    torch.nn.Module.__init__(theirs)
    fusion = {"enable_fusion": True, "fusion_type": "aff_2d"} if fused else {"enable_fusion": False}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs.model, theirs.model_cfg = create_model("HTSAT-tiny", "roberta", device="cpu", **fusion)
    theirs.enable_fusion = fused
    state = {f"module.{name}": value for name, value in theirs.model.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "clap.pt")
    encode_folder(gallery, acoustic=f"laion:{tmp_path / 'clap.pt'}")
    ours, _ = stored(gallery)
    rows = [row for row in range(12) if row % 3 < 2]  # of a sound longer than 10 s, laion-clap hears a random part
    catalog = DatasetFolder.open(gallery).catalog
    windows = [read_sound(gallery / catalog[row].audio, rate=48_000, seconds=10)[0][0] for row in rows]
    with torch.inference_mode():
        expected = torch.cat([torch.from_numpy(theirs.get_audio_embedding_from_data([w])) for w in windows])
    assert torch.nn.functional.cosine_similarity(ours[rows], expected).min() > 0.9999
    spread = (expected - expected.mean(dim=0)).norm(dim=1).mean()
    assert (ours[rows] - expected).norm(dim=1).max() < 0.05 * spread  # close, measured by how sounds differ


def import_laion_clap(monkeypatch):
    """Import laion-clap without its three downloads and its command line, or skip."""
    import transformers

    roberta = transformers.RobertaConfig(vocab_size=99, num_hidden_layers=1, type_vocab_size=1)
    monkeypatch.setattr(transformers.RobertaModel, "from_pretrained", lambda name: transformers.RobertaModel(roberta))
    for name in ("BertTokenizer", "RobertaTokenizer", "BartTokenizer"):
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", ["test"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    laion_clap = pytest.importorskip("laion_clap", exc_type=ImportError)
    from laion_clap.training import data

    monkeypatch.setattr(data, "torchaudio", types.SimpleNamespace(transforms=MelTransforms))
    return laion_clap


class MelTransforms:
    """The two transforms of torchaudio that laion-clap uses for fused models, by torch and librosa alone."""

    class MelSpectrogram(torch.nn.Module):
        def __init__(self, *, sample_rate, n_fft, hop_length, n_mels, f_min, f_max, **others):
            super().__init__()
            import librosa

            filters = librosa.filters.mel(
                sr=sample_rate, n_fft=n_fft, n_mels=n_mels, fmin=f_min, fmax=f_max, htk=True, norm=None
            )
            self.settings, self.filters = {"n_fft": n_fft, "hop_length": hop_length}, torch.from_numpy(filters)

        def forward(self, signal):
            window = torch.hann_window(self.settings["n_fft"])
            return self.filters @ torch.stft(signal, window=window, return_complex=True, **self.settings).abs() ** 2

    @staticmethod
    def AmplitudeToDB(top_db=None):  # noqa: N802
        return lambda power: 10 * torch.log10(power.clamp(min=1e-10))
