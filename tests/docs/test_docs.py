"""Documentation that cannot rot: links resolve, commands exist, code compiles, generated pages are current."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from casemate import config
from casemate.cli.main import root
from casemate.formats.policy import parse_policy

ROOT = Path(__file__).resolve().parents[2]
SKIP = {".venv", "node_modules", ".pytest_cache", "dist", "build"}
PAGES = sorted(page for page in ROOT.rglob("*.md") if not SKIP & set(page.relative_to(ROOT).parts))
GENERATORS = sorted((ROOT / "tools").glob("make_*.py"))

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!\\)!?\[[^\]\n]*\]\(([^)\s]+)\)")
HTML_LINK = re.compile(r"""<(?:img|source|a)\b[^>]*?\b(?:src|srcset|href)=["']([^"']+)["']""")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def named(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def anchors(page: Path) -> set[str]:
    """Return the anchors a forge makes of a page's headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    plain = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in HEADING.findall(text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=named(PAGES))
def test_links_resolve(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for target in LINK.findall(text) + HTML_LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def commands(text: str) -> Iterator[str]:
    """Yield every command line a page or a hint tells people to type."""
    for language, body in FENCE.findall(text):
        if language not in {"console", "sh", "text", ""}:
            continue
        joined = body.replace("\\\n", " ")
        for line in joined.splitlines():
            found = re.match(r" *(?:\$ |# )?((?:[A-Z_]+=\S+ )*(?:sudo )?(?:\S*/)?(?:casemate|make|setup)\b.*)", line)
            if found and (language in {"console", "sh"} or line.lstrip().startswith("$ ")):
                yield found[1]
    for code in INLINE.findall(FENCE.sub("", text)):
        if re.match(r"(?:sudo )?(?:\S*/)?casemate \S|make \S", code):
            yield code


def words(line: str) -> list[str]:
    """Return the words of the first program in *line*, without sudo and assignments."""
    parts = shlex.split(re.split(r" [|&>;]", line)[0], comments=True)
    while parts and (parts[0] == "sudo" or re.fullmatch(r"[A-Z_]+=.*", parts[0])):
        parts.pop(0)
    return [parts[0].rpartition("/")[2], *parts[1:]]


def why_not(line: str) -> str:
    """Say why nobody can type *line*; empty when they can."""
    if "<" in line or "..." in line or "\u2026" in line:
        return ""
    program, *rest = words(line)
    if program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        return "" if rest and rest[0] in targets else f"no make target {rest}"
    return why_not_casemate(rest) if program == "casemate" else ""


def why_not_casemate(rest: list[str]) -> str:
    command: click.Command = root
    context = click.Context(command, info_name="casemate")
    while rest and isinstance(command, click.Group) and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name.upper() == name:
            return ""  # a placeholder: any verb will do
        child = command.get_command(context, name)
        if child is None:
            return f"no command {name!r}"
        command = child
    known = {spelling for param in command.params for spelling in (*param.opts, *param.secondary_opts)}
    unknown = [
        word for word in rest if word.startswith("-") and word.partition("=")[0] not in known | {"--help", "-h", "-"}
    ]
    return f"no option {unknown}" if unknown else ""


@pytest.mark.parametrize("page", PAGES, ids=named(PAGES))
def test_every_command_a_page_names_exists(page):
    found = {line: why_not(line) for line in commands(page.read_text(encoding="utf-8"))}
    assert not {line: why for line, why in found.items() if why}


def test_every_command_an_error_or_hint_names_exists():
    wrong = {}
    for source in sorted((ROOT / "src").rglob("*.py")):
        for line in re.findall(r"`(casemate [^`{}\n\"]+)`", source.read_text(encoding="utf-8")):
            if why := why_not(line):
                wrong[f"{source.relative_to(ROOT)}: {line}"] = why
    assert not wrong


def test_every_page_the_source_refers_to_exists():
    missing = {}
    for source in [*(ROOT / "src").rglob("*.py"), *(ROOT / "tools").rglob("*.py"), ROOT / "Makefile", ROOT / "setup"]:
        for name in re.findall(r"\bdocs/[\w/.-]+\.(?:md|toml|svg)", source.read_text(encoding="utf-8")):
            if not (ROOT / name).exists():
                missing[f"{source.relative_to(ROOT)}: {name}"] = name
    assert not missing


def test_the_check_can_fail():
    assert why_not("casemate nonsense")
    assert why_not("casemate status --nonsense")
    assert why_not("make nonsense")
    assert not why_not("sudo .venv/bin/casemate status --json | head")


@pytest.mark.parametrize("page", PAGES, ids=named(PAGES))
def test_python_in_pages_compiles(page):
    for language, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            compile(body, str(page), "exec")


def test_every_page_can_be_reached_from_the_map():
    seen: set[Path] = set()
    todo = [ROOT / "docs" / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen:
            continue
        seen.add(page)
        links = LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
        found = ((page.parent / link.partition("#")[0]).resolve() for link in links if not re.match("[a-z]+:", link))
        todo += [path for path in found if path.suffix == ".md" and path.is_file()]
    lost = [page for page in PAGES if page not in seen and ROOT / "docs" in page.parents]
    assert not named(lost)


def test_every_decision_is_in_the_index():
    folder = ROOT / "docs" / "adr"
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert not [page.name for page in folder.glob("[0-9]*.md") if f"({page.name})" not in index]


def examples(page: str) -> list[str]:
    """Return the TOML that a page tells people to write."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [body for language, body in FENCE.findall(text) if language == "toml"]


@pytest.mark.parametrize("page", ["docs/reference/policy.md", "docs/tutorial/first-model.md"])
def test_the_policies_in_pages_are_valid(page):
    for body in examples(page):
        parse_policy(body.encode(), source=page)
    assert examples(page)


def test_the_settings_in_pages_are_valid(tmp_path):
    file = tmp_path / "casemate.toml"
    file.write_text("\n".join(examples("docs/reference/configuration.md")))
    settings = config.load(environ={"CASEMATE_CONFIG": str(file)})
    assert str(file) in settings.origin.values()


@pytest.mark.parametrize("tool", GENERATORS, ids=[tool.stem for tool in GENERATORS])
def test_generated_pages_are_current(tool):
    run = subprocess.run([sys.executable, str(tool), "--check"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_readme_says_it_all_on_its_first_screen():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first_screen = text.partition("\n## ")[0]
    shown = re.sub(r"<!--.*?-->\n?", "", first_screen)
    assert len(shown.strip().splitlines()) <= 40
    assert "make up" in first_screen
    assert "make check" in first_screen
