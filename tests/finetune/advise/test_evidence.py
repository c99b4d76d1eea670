"""The list of publications: every entry is complete, and the conflicts name entries."""

from pypeft_fast.finetune.advise.evidence import CONFLICTS, FINDINGS, against

KEYS = {its.key for its in FINDINGS}


def test_every_finding_has_its_source_and_sample():
    assert len(KEYS) == len(FINDINGS) == len({its.url for its in FINDINGS})
    for its in FINDINGS:
        assert its.url.startswith("https://") and 2021 <= its.year <= 2026
        assert all((its.authors, its.title, its.claim, its.sample)) and 0 < len(its.brief) <= 60
        assert its.claim.endswith(".") and not its.sample.endswith(".")


def test_conflicts_name_findings_and_are_mutual():
    for its in CONFLICTS:
        assert {*its.one, *its.other} <= KEYS and not {*its.one} & {*its.other}
    for key in KEYS:
        assert all(key in against(other) for other in against(key)) and key not in against(key)
    assert against("hu") == ["dettmers", "biderman", "schulman"] and against("zhang") == ["sehanobish"]
