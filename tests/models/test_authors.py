"""The authors' checkpoints: found by their own names where they belong, and nowhere else."""

import hashlib

import pytest

from idsds import evaluate
from idsds.__main__ import main
from idsds.models import authors

NAME = "resnet18_imagenet1000_lr0.001_epochs30_step10_checkpoint_best.pth.tar"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_CHECKPOINTS", str(tmp_path))
    monkeypatch.setenv("IDSDS_DATA", str(tmp_path / "data"))
    return tmp_path


def test_the_files_have_the_authors_names(folder):
    assert authors.file_of("resnet18") == folder / NAME
    assert authors.file_of("x_vgg16").name.startswith("xvgg16_imagenet1000")
    assert authors.file_of("x_resnet50").name.startswith("xresnet50_imagenet1000")


def test_hashes_are_printed_and_compared(folder, capsys):
    content = b"weights"
    (folder / NAME).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    assert main(["checkpoints", "resnet18", "vgg16"]) == 0
    printed = capsys.readouterr().out
    assert digest in printed
    assert "nothing to compare with" in printed
    assert "missing" in printed
    assert authors.REPOSITORY in printed
    (folder / f"{NAME}.sha256").write_text(f"{digest}  {NAME}\n")
    assert authors.listing(["resnet18"])["check"].tolist() == ["as written"]
    (folder / f"{NAME}.sha256").write_text(f"{'0' * 64}  {NAME}\n")
    assert main(["checkpoints", "resnet18"]) == 1


def test_a_file_that_is_missing_is_named_with_the_repository_that_links_it(folder):
    settings = {"models": ["resnet18"], "methods": ["Random"], "dataset": "imagenet", "images": 2, "dry_run": True}
    with pytest.raises(ValueError, match=f"put the authors' '{NAME}' .https://github.com/visinf/idsds. into"):
        evaluate(**settings)
    (folder / NAME).touch()
    for other in ({"grid": 8}, {"baseline": "blur"}, {"protocol": "single_deletion"}):  # for which it was not fine-tuned
        with pytest.raises(ValueError, match="there is no checkpoint of 'resnet18' for imagenet: name one"):
            evaluate(**settings, **other)
