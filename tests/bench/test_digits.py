"""scikit-learn's digits, two at a time: the accuracy, and our heads against scikit-learn's own."""

from statistics import fmean

import pytest
import torch
import torch.nn.functional as F

from clora_core.bench.class_methods import COMPARED
from clora_core.bench.classification import of_classes, one_run
from clora_core.classification.heads import head_rows, logits
from clora_core.classification.learn import ClassPictures, TaskLearning
from clora_core.classification.museum import TaskMuseum
from clora_core.classification.recipe import METHODS
from clora_core.classification.vision import Vision, open_vision
from clora_core.measure import final_alignment

datasets = pytest.importorskip("sklearn.datasets")
pytest.importorskip("transformers")
CLASSES = tuple(map(str, range(10)))


@pytest.fixture(scope="module")
def vision() -> Vision:
    return open_vision("starter")


@pytest.fixture(scope="module")
def digits() -> tuple[ClassPictures, ClassPictures]:
    """12 pictures of each to train on, and 12 to test on, as large as the network reads them."""
    loaded = datasets.load_digits()
    labels = torch.tensor(loaded.target)
    pixels = torch.tensor(loaded.images, dtype=torch.float32)[:, None] / 16 * 255
    pixels = F.interpolate(pixels, (48, 48), mode="bilinear").round().to(torch.uint8).expand(-1, 3, -1, -1)
    order = torch.cat([(labels == label).nonzero().flatten()[:24].view(2, 12) for label in range(10)], dim=1)
    train, test = (ClassPictures(CLASSES, pixels[places], labels[places]) for places in order)
    return train, test


@pytest.mark.parametrize("name", ["frozen", "c-lora", "joint"])
def test_digits_are_learned_two_at_a_time(digits: tuple[ClassPictures, ClassPictures], vision: Vision, name: str):
    settings = {"method": name, "weight": COMPARED[name].weight, "head": "imprint", "epochs": 3, "rank": 4}
    found = one_run("starter", vision, *digits, tasks=5, seed=0, **settings)  # type: ignore[arg-type]
    matrix = found["read"]["imprint"]["all"]
    assert len(matrix) == (1 if name == "joint" else 5) and len(matrix[-1]) == 5
    assert final_alignment(matrix) > 0.25, "chance is 0.1"
    assert fmean(found["read"]["imprint"]["within"][-1]) > 0.75, "chance is 0.5"


def test_the_heads_agree_with_scikit_learns(digits: tuple[ClassPictures, ClassPictures], vision: Vision):
    from sklearn.covariance import OAS
    from sklearn.neighbors import NearestCentroid

    train, test = digits
    museum = TaskMuseum(vision.fingerprint)
    for own in (CLASSES[:5], CLASSES[5:]):
        museum = museum.with_task(TaskLearning(vision, museum, of_classes(train, own), METHODS["frozen"]).run())
    seen, asked = (vision.all_features(part.pictures) for part in digits)
    nearest = NearestCentroid().fit(seen.numpy(), train.labels.numpy()).predict(asked.numpy())
    assert logits(asked, head_rows(museum, "means")).argmax(1).tolist() == nearest.tolist()
    means = torch.stack([seen[train.labels == label].mean(0) for label in range(10)]).double()
    shared = OAS(assume_centered=True).fit((seen.double() - means[train.labels]).numpy())
    distances = [
        torch.einsum("nd,de,ne->n", apart, torch.tensor(shared.precision_), apart)
        for apart in (asked.double() - mean for mean in means)
    ]
    guesses = logits(asked, head_rows(museum, "lda")).argmax(1)
    # ours divides by the pictures less the classes, theirs by the pictures
    assert (torch.stack(distances).argmin(0) == guesses).float().mean() > 0.95
    assert (guesses == test.labels).float().mean() > 0.5
