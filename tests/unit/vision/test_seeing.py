"""A model that sees in use: torch and device file answer as transformers' LLaVA does, bad input is told."""

import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fixture_checkpoint import write_checkpoint
from fixture_seeing import write_seeing_checkpoint
from PIL import Image

from mobillama import engine
from mobillama.cli.making import quantize
from mobillama.core.errors import UserError
from mobillama.core.records import manifest_hash, read_manifest
from mobillama.engine import Conversation as Chat
from mobillama.vision.conversation import Conversation
from mobillama.vision.images import ImageRules, opened
from mobillama.vision.onnx_eye import CHECKPOINT_KEY, OnnxEye, vision_half
from mobillama.vision.opening import open_model

QUESTION = "What does this show?"
GREEDY = engine.GenerationOptions(max_tokens=12, sampling=engine.GREEDY)


def made(directory: Path, tower: str):
    """Return a checkpoint of a model that sees, and its device files in full precision."""
    model = write_seeing_checkpoint(directory / "checkpoint", conv=tower == "conv")
    quantize(directory / "checkpoint", directory / "m.gguf", type="f16")
    return model, directory / "checkpoint", directory / "m.gguf"


@pytest.fixture(scope="module")
def conv(tmp_path_factory):
    return made(tmp_path_factory.mktemp("conv"), "conv")


@pytest.fixture(scope="module")
def conv_models(conv):
    """The same model in torch and as a device file."""
    return open_model(conv[1]), open_model(conv[2], threads=1)


@pytest.fixture(scope="module", params=["clip", "conv"])
def seeing(request, tmp_path_factory):
    if request.param == "conv":
        return request.getfixturevalue("conv")
    return made(tmp_path_factory.mktemp("clip"), "clip")


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def asked(text: str, *images: Path) -> list[dict]:
    return [{"role": "user", "content": text, "images": list(images)}]


def answer(model: engine.LanguageModel, messages, options=GREEDY) -> list[int]:
    return [event.token for event in model.chat(messages, options)]


def transformers_answer(model, directory: Path, photo: Path) -> list[int]:
    prompt = Conversation.read(directory).prompt(
        [{"role": "user", "content": f"<image>\n{QUESTION}"}], tiles=[1]
    )
    pixels = torch.from_numpy(ImageRules.read(directory).pixels(opened(photo)))
    written = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        pixel_values=pixels,
        max_new_tokens=GREEDY.max_tokens,
        do_sample=False,
    )
    return written[0, len(prompt) :].tolist()


def test_torch_answers_as_transformers_does(seeing, photo):
    model, directory, _ = seeing
    assert answer(open_model(directory), asked(QUESTION, photo)) == transformers_answer(
        model, directory, photo
    )


def test_the_prompt_in_use_is_the_prompt_of_training(seeing, photo):
    _, directory, device_file = seeing
    learnt = Conversation.read(directory)
    turns = [
        {"role": "user", "content": f"<image>\n{QUESTION}"},
        {"role": "assistant", "content": "A test."},
        {"role": "user", "content": "And\nthen? <image> too"},
    ]
    wanted = learnt.spell(turns, images=2).ids.tolist()
    used = [
        {"role": "user", "content": QUESTION, "images": [photo]},
        {"role": "assistant", "content": "A test."},
        {"role": "user", "content": "And\nthen? <image> too", "images": [photo]},
    ]
    for model in (open_model(directory), open_model(device_file)):
        assert model.chat_prompt(used) == wanted


def test_the_device_file_sees_and_scores_as_torch_does(seeing, photo):
    _, directory, device_file = seeing
    ours, theirs = open_model(device_file, threads=1, kv_type="f16"), open_model(directory)
    rows, reference = ours.look(photo), theirs.look(photo)
    np.testing.assert_allclose(rows, reference, atol=1e-4)
    logits = []
    for model in (ours, theirs):
        cache = model.cache
        prompt = engine.images.placed(
            model.chat_prompt(asked(QUESTION, photo)), model.image_token, [reference], cache
        )
        logits.append(cache.prefill(prompt))
    # Weights are rounded to f16 in one of them.
    np.testing.assert_allclose(logits[0], logits[1], atol=0.05)
    assert logits[0].argmax() == logits[1].argmax()


def test_another_image_gives_other_scores(conv, photo, tmp_path):
    _, _, device_file = conv
    model = open_model(device_file, threads=1)
    other = tmp_path / "other.png"
    Image.new("RGB", (30, 30), "red").save(other)
    scored = dataclasses.replace(GREEDY, max_tokens=1, logprobs=1)
    first, second = (next(iter(model.chat(asked(QUESTION, image), scored))) for image in (photo, other))
    assert abs(first.alternatives[0].logprob - second.alternatives[0].logprob) > 1e-3


def test_both_files_name_their_checkpoint(conv):
    _, directory, device_file = conv
    half = vision_half(device_file)
    wanted = manifest_hash(directory)
    assert read_manifest(device_file)["checkpoint"] == wanted
    assert read_manifest(half, "vision half")["checkpoint"] == wanted
    model = open_model(device_file)
    assert model.metadata[CHECKPOINT_KEY] == wanted
    assert model.eye.session.get_modelmeta().custom_metadata_map[CHECKPOINT_KEY] == wanted


def test_int8_halves_stay_near(photo, tmp_path):
    directory = tmp_path / "checkpoint"
    write_seeing_checkpoint(directory)
    quantize(directory, tmp_path / "small.gguf")
    rows, reference = (open_model(path).look(photo) for path in (tmp_path / "small.gguf", directory))
    cosine = (rows * reference).sum() / np.linalg.norm(rows) / np.linalg.norm(reference)
    assert 0.99 < cosine < 1
    assert read_manifest(tmp_path / "small.vision.onnx")["type"] == "int8"


def test_a_chat_keeps_its_image_and_looks_once(conv, photo):
    _, directory, _ = conv
    model = open_model(directory)
    looks = []
    eye = model.eye
    model.eye = lambda image: looks.append(image) or eye(image)
    chat = Chat.begin(model, GREEDY)
    list(chat.ask(QUESTION, images=[photo]))
    held = model.cache.position
    list(chat.ask("And then?"))
    assert looks == [photo]
    assert model.cache.position > held
    assert min(model.cache.tokens) < 0


def test_a_changed_vision_half_is_refused(conv, photo, tmp_path):
    _, _, device_file = conv
    for name in ("m.gguf", "m.vision.onnx", "m.vision.onnx.manifest.json"):
        (tmp_path / name).write_bytes((device_file.parent / name).read_bytes())
    half = tmp_path / "m.vision.onnx"
    content = bytearray(half.read_bytes())
    content[len(content) // 2] ^= 1
    half.write_bytes(content)
    with pytest.raises(UserError, match=r"m\.vision\.onnx: content differs"):
        open_model(tmp_path / "m.gguf").look(photo)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x07" * 400])
def test_a_vision_half_that_is_none_is_told(conv, photo, tmp_path, content):
    _, _, device_file = conv
    (tmp_path / "m.gguf").write_bytes(device_file.read_bytes())
    (tmp_path / "m.vision.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"m\.vision\.onnx: not a usable vision half"):
        open_model(tmp_path / "m.gguf").look(photo)


def test_halves_of_two_checkpoints_are_refused(conv, tmp_path, photo):
    other = dict(open_model(conv[2]).metadata) | {CHECKPOINT_KEY: "0" * 64}
    with pytest.raises(UserError, match="of another checkpoint"):
        OnnxEye(vision_half(conv[2]), other)(photo)


@pytest.mark.parametrize(
    ("text", "images", "told"),
    [
        ("<image> and <image>", 1, "2 <image> markers for 1 image"),
        ("<image>", 2, "1 <image> marker for 2 images"),
        ("what is in <image>?", 0, "1 <image> marker for 0 images"),
    ],
)
def test_markers_must_be_as_many_as_images(conv_models, photo, text, images, told):
    for model in conv_models:
        with pytest.raises(UserError, match=told):
            model.chat(asked(text, *[photo] * images))
        with pytest.raises(UserError, match=told):
            model.generate(text, images=[photo] * images)


def test_an_image_more_than_the_context_holds_is_told(conv, photo):
    _, directory, _ = conv
    with pytest.raises(UserError, match="the context holds 256"):
        answer(open_model(directory), asked(QUESTION, *[photo] * 20))


def bad_images() -> dict[str, tuple[bytes, str]]:
    """Return contents that are no usable image, each with what must be said."""

    def encoded(image, kind, **options):
        content = io.BytesIO()
        image.save(content, kind, **options)
        return content.getvalue()

    jpeg = encoded(Image.effect_noise((200, 200), 80).convert("RGB"), "JPEG")
    return {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "damaged or cut off"),
        "script.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "SVG"),
        "empty.png": (b"", "an empty file"),
        "words.jpg": (b"just words", "not an image"),
        "huge.png": (encoded(Image.new("1", (50_000, 50_000)), "PNG"), "scale it down"),
    }


@pytest.mark.parametrize("name", [*bad_images(), "missing.png"])
def test_bad_images_are_told_by_name(conv_models, tmp_path, name):
    content, told = bad_images().get(name, (None, "No such file"))
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for model in conv_models:
        with pytest.raises(UserError, match=told) as error:
            model.look(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)


def test_a_bad_image_is_one_line_for_who_asks(conv, tmp_path):
    (tmp_path / "script.svg").write_bytes(bad_images()["script.svg"][0])
    done = verb("generate", conv[2], "--prompt", QUESTION, "--image", tmp_path / "script.svg")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: ") and "SVG" in done.stderr


def odd_images() -> dict[str, Image.Image]:
    """Return images that are odd but right; each shows red."""
    return {
        "one.png": Image.new("RGB", (1, 1), "red"),
        "strip.png": Image.new("RGB", (50_000, 1), "red"),
        "cmyk.jpg": Image.new("CMYK", (50, 50), (0, 255, 255, 0)),
        "paper.tiff": Image.new("RGB", (50, 50), "red"),
        "moving.gif": Image.new("RGB", (50, 50), "red"),
        "clear.png": Image.new("RGBA", (50, 50), (255, 0, 0, 255)),
    }


@pytest.mark.parametrize("name", list(odd_images()))
def test_odd_images_are_seen_as_what_they_show(conv_models, tmp_path, name):
    odd_images()[name].save(tmp_path / name)
    model = conv_models[0]
    shown = np.asarray(model.eye.rules.squares(opened(tmp_path / name))[0]).astype(int)
    red = (shown[..., 0] > 240) & (shown[..., 1:].max(-1) < 20)
    # The strip is one row of the padded square; whatever else is there fills it.
    assert red.sum() == (shown.shape[1] if name == "strip.png" else red.size)
    assert model.look(tmp_path / name).shape == (model.eye.rules.tokens, 64)


def verb(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mobillama", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_an_image_for_a_model_of_text_only_is_refused(tmp_path, photo):
    write_checkpoint(tmp_path / "text")
    quantize(tmp_path / "text", tmp_path / "text.gguf")
    assert not (tmp_path / "text.vision.onnx").exists()
    for words in (("generate", "--prompt", QUESTION), ("chat",)):
        done = verb(words[0], tmp_path / "text.gguf", *words[1:], "--image", photo)
        assert done.returncode == 2
        assert "a model of text only; leave the image out" in done.stderr


def test_a_device_file_without_its_vision_half_speaks_and_says_what_is_missing(conv, photo, tmp_path):
    _, _, device_file = conv
    (tmp_path / "m.gguf").write_bytes(device_file.read_bytes())
    model = open_model(tmp_path / "m.gguf")
    assert answer(model, asked("Hello"))
    with pytest.raises(UserError, match="its vision half is not here"):
        model.look(photo)


def test_generate_and_chat_show_images_without_torch(conv, photo):
    _, _, device_file = conv
    arguments = ["--image", str(photo), "--temperature", "0", "--max-tokens", "8", "--threads", "1"]
    code = (
        "import sys; sys.argv = sys.argv[1:]; from mobillama.cli import app; app.app(standalone_mode=False);"
        "assert not {'torch', 'transformers', 'onnx'} & set(sys.modules)"
    )
    answers = []
    for words, typed in ((["generate", "--prompt", QUESTION], ""), (["chat"], f"{QUESTION}\n")):
        done = subprocess.run(
            [sys.executable, "-c", code, "mobillama", words[0], str(device_file), *words[1:], *arguments],
            capture_output=True,
            input=typed.encode(),
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        answers.append(done.stdout.decode(errors="replace"))
    assert answers[0].strip()[:4] in answers[1]
