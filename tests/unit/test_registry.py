"""The registry of known teachers is consistent, shown, and known to the configuration."""

from __future__ import annotations

import re

import pytest
from tiny import ROOT

from msd.cli.main import main
from msd.config import KnownSource, load
from msd.errors import ConfigError
from msd.plan import Plan
from msd.registry import KNOWN, HubFolder, UrlFile

PARAMS = ROOT / "params.yaml"
CONDITIONAL, UNCONDITIONAL = "edm-imagenet-64x64-cond-adm", "edm-ffhq-64x64-uncond-vp"
TWO = "variants={a: {students: 2}, b: {students: 1}}"


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        load(PARAMS, (), overrides)
    return [line.strip() for line in refused.value.why.splitlines()]


def known(name: str) -> str:
    return f"teacher={{source: known, name: {name}}}"


@pytest.mark.parametrize("name", KNOWN)
def test_entries_are_consistent(name: str) -> None:
    teacher = KNOWN[name]
    assert teacher.licence
    digests = [teacher.place.sha256] if isinstance(teacher.place, UrlFile) else teacher.place.files.values()
    assert all(d is None or re.fullmatch("[0-9a-f]{64}", d) for d in digests)
    if isinstance(teacher.place, HubFolder):
        assert re.fullmatch("[0-9a-f]{40}", teacher.place.revision)
    else:
        assert teacher.place.url.endswith(f"/{name}.pkl")
        assert f"{teacher.resolution}x{teacher.resolution}" in name
        assert ("uncond" in name) == (teacher.classes == 0)


def test_edm_files_are_all_there() -> None:
    edm = [name for name in KNOWN if name.startswith("edm-")]
    assert len(edm) == 9
    assert KNOWN[CONDITIONAL].classes == 1000
    assert KNOWN["edm-cifar10-32x32-cond-ve"].classes == 10
    assert KNOWN["edm-cifar10-32x32-cond-ve"].architecture == "NCSN++"


def test_list_shows_every_teacher_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teacher", "list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(KNOWN)
    (line,) = [text for text in lines if text.startswith(CONDITIONAL)]
    for cell in ("64×64", "1000 classes", "ADM", "CC BY-NC-SA 4.0", f"/{CONDITIONAL}.pkl"):
        assert line.index(cell) > 0
    assert line.index("ADM") == head.index("architecture")


def test_configuration_names_a_known_teacher() -> None:
    experiment = load(PARAMS, (), [known(CONDITIONAL), TWO])
    assert experiment.teacher == KnownSource(source="known", name=CONDITIONAL)
    settings = Plan(experiment).teacher.settings
    assert settings == {"role": "teacher", "source": "known", "name": CONDITIONAL, "network": None}


def test_unknown_name_is_told_with_the_nearest() -> None:
    assert problems(known("edm-imagenet-64-cond-adm")) == [
        f"teacher.name: no known teacher 'edm-imagenet-64-cond-adm'; did you mean {CONDITIONAL!r}?"
    ]


def test_unconditional_teacher_has_nothing_to_split() -> None:
    (problem,) = problems(known(UNCONDITIONAL), TWO)
    assert problem == "variants.a.students: the teacher is unconditional, there is nothing to split among 2"
    assert load(PARAMS, (), [known(UNCONDITIONAL), "variants={b: {students: 1}, t: {model: teacher}}"])


def test_teacher_of_text_is_refused_before_it_is_downloaded() -> None:
    (problem,) = problems(known("stable-diffusion-v1-5"))
    assert problem.startswith("teacher.name: a teacher that is conditioned on text goes with the section")


def test_password_in_a_url_is_refused() -> None:
    source = f"teacher={{source: url, url: 'https://me:secret@host/net.pkl', sha256: {'f' * 64}}}"
    (problem,) = problems(source)
    assert problem.startswith("teacher:")
    assert "~/.netrc" in problem
    assert "secret" not in problem


def test_revision_must_be_a_commit() -> None:
    source = f"teacher={{source: hf, repo: me/net, revision: main, filename: net.bin, sha256: {'f' * 64}}}"
    (problem,) = problems(source)
    assert problem.startswith("teacher.revision:")
