"""Our models in lmms-eval, where that is installed: `--model mobillama --model_args pretrained=MODEL`.

lmms-eval finds `manifest` through the entry point `mobillama` of its group `lmms_eval.models`. It pulls in
about 150 packages, so it belongs into an environment of its own; nothing here needs it otherwise.
"""

from collections.abc import Sequence
from typing import Any

from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]
from PIL import Image

from mobillama import engine
from mobillama.core.errors import UserError
from mobillama.vision.opening import open_model

MOST_TOKENS = 256


def manifest() -> ModelManifest:
    """Return what lmms-eval must know to build the model."""
    return ModelManifest(model_id="mobillama", simple_class_path=f"{__name__}.{MobiLlamaModel.__name__}")


class MobiLlamaModel(lmms):
    """A checkpoint, a run, a model folder or a `.gguf`, as lmms-eval asks models.

    Arguments:
        pretrained: the model.
        device: of a model in torch.
        options: lmms-eval's own, of which `batch_size` must be 1.
    """

    is_simple = True

    def __init__(self, pretrained: str, device: str | None = None, **options: Any) -> None:
        super().__init__()
        if int(options.get("batch_size") or 1) != 1:
            raise UserError(f"batch_size {options['batch_size']}: answers come one at a time; leave it out")
        self.model = open_model(pretrained, device=device)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the greedy answer to each request: prompt, options, and how to get its document's images."""
        answers = []
        for request in requests:
            prompt, options, images_of, document, task, split = request.args
            images = images_of(self.task_dict[task][split][document]) or []
            answers.append(self.answer(prompt, images, options))
        return answers

    def answer(self, prompt: str, images: Sequence[Any], options: dict[str, Any]) -> str:
        """Return the greedy answer to a question about images.

        Raises:
            UserError: something else than images is shown, or answers are to be drawn at random.
        """
        if not all(isinstance(image, Image.Image) for image in images):
            raise UserError("only images can be shown; choose tasks without video and sound")
        if options.get("do_sample") and options.get("temperature", 1) > 0:
            raise UserError("the task asks for answers drawn at random; only greedy ones are given here")
        stop = options.get("until") or ()
        wanted = engine.GenerationOptions(
            max_tokens=options.get("max_new_tokens", MOST_TOKENS),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            sampling=engine.GREEDY,
        )
        question = {"role": "user", "content": prompt, "images": list(images)}
        return "".join(event.text for event in self.model.chat([question], wanted)).strip()

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuse: tasks about images ask for written answers."""
        raise UserError(
            "log-likelihoods with images are not given; choose tasks that ask for written answers"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse tasks of several rounds."""
        raise UserError("tasks of several rounds are not supported; choose one of single questions")
