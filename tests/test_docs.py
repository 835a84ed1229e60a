"""docs/generate.py counts the pages that are not as the code makes them, and docs/models.md leaves nothing out."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/models.py, imported as generate.py imports it."""
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("models")


def test_a_page_that_is_not_as_the_code_makes_it_is_counted(
    page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That none is, `make check` asks: docs/api.md alone takes some ten seconds."""
    generate = importlib.import_module("generate")
    monkeypatch.setattr(generate, "PAGES", {"cli.md": generate.cli_page, "models.md": generate.models_page})
    assert generate.generate(check=True) == 0
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    assert generate.generate(check=True) == 2
    (tmp_path / "cli.md").write_text(generate.cli_page())
    assert generate.generate(check=True) == 1


def test_a_family_or_a_published_value_that_no_row_describes_is_named(
    page: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "ROWS", (*page.ROWS, replace(page.ROWS[0], model="org/unlisted")))
    with pytest.raises(ValueError, match="lacks the model with published values org/unlisted"):
        page.models_page()
    monkeypatch.setattr(page, "ROW_OF", {**page.ROW_OF, "new_bert": None})
    with pytest.raises(ValueError, match="lacks the family new_bert"):
        page.models_page()
