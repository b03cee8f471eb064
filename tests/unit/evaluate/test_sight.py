"""What held-out answers owe to sight, against scores computed one by one and by hand."""

import numpy as np
import pytest
import torch
from small_images import recipe, write_pictures
from transformers import LlavaForConditionalGeneration

from mobillama.cli import main
from mobillama.core.errors import UserError
from mobillama.evaluate import sight, verb
from mobillama.lineage import kinds
from mobillama.train import last_checkpoint, train
from mobillama.vision.image_set import ImageSet
from mobillama.vision.images import ImageRules
from mobillama.vision.preparation import prepare_images
from mobillama.vision.samples import IGNORED, ImageSamples


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """A run that has learnt its four colours, and nothing else of its pictures."""
    folder = write_pictures(tmp_path_factory.mktemp("sight"))
    loaded = recipe(folder, data={"weights": {"color": 1}}, train={"max_steps": 120}, checkpoint={"count": 1})
    prepare_images(loaded.recipe.images)
    return train(loaded, kinds.work_of(loaded.recipe))


def test_figures_by_hand():
    # Two groups of two answers (rows) with two images (columns).
    groups = [np.array([[1.0, 2.0], [5.0, 3.0]]), np.array([[2.0, 1.0], [4.0, 2.0]])]
    told = sight.figures(groups)
    assert told["nats_right"] == pytest.approx((1 + 3 + 2 + 2) / 4)
    assert told["nats_wrong"] == pytest.approx((2 + 5 + 1 + 4) / 4)
    assert told["gain"]["value"] == pytest.approx((1 + 2 - 1 + 2) / 4)
    # Gains of the second group: [-0.5, 0.5] and [-1, 1]; its first image is nearer to the first answer.
    assert told["retrieval"]["value"] == 1.0 and told["retrieval"]["chance"] == 0.5


def test_nats_are_those_of_transformers_one_by_one(seeing):
    directory = recipe(seeing.parent).recipe.images.directory
    checkpoint = last_checkpoint(seeing)
    loaded = recipe(seeing.parent).recipe.data
    samples = ImageSamples(ImageSet(directory), loaded, ImageRules.read(checkpoint), seed=0, step=8)
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint).eval()
    table, rows = samples.set.heldout, sight.rows_of_one_image(samples)[:3]
    ours = sight.nats_by_image(model, samples, rows)
    assert len({table.images_of(row)[0] for row in rows}) == 3
    for place, row in enumerate(rows):
        for other, shown in enumerate(rows):
            batch = {name: torch.from_numpy(array) for name, array in samples.collate(table, [row]).items()}
            labels = batch.pop("labels")[0]
            batch["pixel_values"] = torch.from_numpy(samples.pixels(table.images_of(shown)))
            with torch.inference_mode():
                likely = model(**batch).logits[0].log_softmax(-1)
            counted = labels != IGNORED
            nats = -likely[counted].gather(1, labels[counted][:, None]).mean()
            assert ours[place, other] == pytest.approx(float(nats), rel=1e-4)


def test_a_model_that_sees_gains_by_the_right_image(seeing, tmp_path, capsys, monkeypatch):
    words = ["evaluate", str(seeing), "--tasks", "heldout", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["mobillama", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert "gained by the right image" in capsys.readouterr().out
    (result,) = verb.run(verb.Request(str(seeing), ["heldout"], out=tmp_path))
    assert result["gain"]["interval"][0] > 0 and result["nats_right"] < result["nats_wrong"]
    assert result["answers"] == result["settings"]["group"] <= 20
    assert result["retrieval"]["value"] > result["retrieval"]["chance"]


def test_without_held_out_images_there_is_nothing_to_measure(tmp_path):
    folder = write_pictures(tmp_path, 4)
    given = recipe(folder).recipe.images.model_dump() | {"heldout_share": 0.0}
    loaded = recipe(folder, images=given, train={"max_steps": 1}, checkpoint={"count": 1})
    directory = prepare_images(loaded.recipe.images)
    run = train(loaded, kinds.work_of(loaded.recipe))
    with pytest.raises(UserError, match=r"images\.heldout_share"):
        sight.evaluate_sight(str(run), directory, tmp_path / "out")
