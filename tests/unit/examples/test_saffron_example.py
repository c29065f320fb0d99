"""The example app: words become wishes, wishes one plan, votes one place; the model's word is not taken for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "saffron"
sys.path.insert(0, str(EXAMPLE))

# The example is a folder of scripts, not a package: it is found by its folder, as when it is run.
import agreement  # noqa: E402
import app  # noqa: E402
import wishes as store  # noqa: E402
from agreement import Place, Plan, Wish, agree, compare, decide, favourites, relaxed, understand  # noqa: E402
from helper import Helper, read_suggestion, saffron_question  # noqa: E402

from casemate.formats.policy import parse_policy  # noqa: E402

sys.path.remove(str(EXAMPLE))

LANTERN = Place("Wild Lantern", "Japanese", "Riverside", "budget", ("halal food", "step-free access"))
ANCHOR = Place("Silver Anchor", "Thai", "Harbour", "budget", ("outdoor seating", "vegan options"))


def test_a_wish_is_read_from_plain_words():
    wish = understand("Ana", "Thai or japanese please, cheap, near the harbour, no Mexican, vegan, unicorns")
    assert wish == Wish(
        "Ana",
        cuisines=("Thai", "Japanese"),
        never=("Mexican",),
        price="budget",
        areas=("Harbour",),
        needs=("vegan options",),
        unknown=("unicorns",),
    )


def test_a_comma_ends_a_no():
    assert understand("Ana", "not thai, greek") == Wish("Ana", cuisines=("Greek",), never=("Thai",))


@pytest.mark.parametrize("word", [*agreement.CUISINES, *agreement.AREAS, *agreement.PRICES, *agreement.NEEDS])
def test_every_word_the_app_knows_is_understood(word):
    wish = understand("Ana", word)
    assert not wish.unknown
    assert word in (*wish.cuisines, wish.price, *wish.areas, *wish.needs)


def test_the_plan_is_what_everybody_can_live_with():
    plan = agree(
        [
            understand("Ana", "Japanese, mid-range, Riverside"),
            understand("Ben", "Thai or Mexican, cheap, step-free"),
            understand("Chris", "Thai, Riverside, no Mexican"),
        ]
    )
    assert plan == Plan(3, ("Thai", "Japanese"), "budget", "Riverside", ("step-free access",))


def test_a_group_without_wishes_may_eat_anything():
    assert agree([Wish("Ana"), Wish("Ben", never=("Thai",))]).cuisines == tuple(
        c for c in agreement.CUISINES if c != "Thai"
    )


def test_a_cuisine_everybody_avoids_is_never_asked_for():
    plan = agree([understand("Ana", "thai"), understand("Ben", "no thai, greek")])
    assert plan.cuisines == ("Greek",)


@given(
    st.lists(
        st.builds(Wish, st.just("x"), st.lists(st.sampled_from(agreement.CUISINES), max_size=3).map(tuple)), min_size=1
    )
)
def test_agreeing_is_deterministic_and_every_step_relaxes(group):
    plan = agree(group)
    assert plan == agree(group)
    steps = relaxed(plan)
    assert len(steps) <= 12
    assert len(set(steps)) == len(steps)
    assert all(step.cuisines[0] in plan.cuisines for step in steps)


def test_the_model_hears_no_names_and_no_more_than_it_can_use():
    plan = agree([understand("Ana", "Japanese, cheap, Riverside, vegan"), understand("Ben", "")])
    question = saffron_question(relaxed(plan)[0])
    assert question == "We are two people, can you find something Japanese, budget price, in Riverside?"


def test_votes_decide_and_the_earlier_suggestion_wins_a_tie():
    assert decide([LANTERN, ANCHOR], {"Ana": [1], "Ben": [1, 0], "Chris": [0, 0, 7]}) == (LANTERN, 2)
    assert decide([LANTERN, ANCHOR], {"Ana": [1], "Ben": [1]}) == (ANCHOR, 2)


def test_an_empty_vote_is_what_suits_a_person_best():
    assert favourites(understand("Ana", "thai"), [LANTERN, ANCHOR]) == [1]
    assert favourites(understand("Ana", "no thai"), [LANTERN, ANCHOR]) == [0]
    assert favourites(understand("Ana", ""), [LANTERN, ANCHOR]) == [0, 1]


def test_wishes_on_disk_are_private(tmp_path):
    path = tmp_path / "wishes.json"
    assert store.load(path) == {}
    store.save(path, {"Ana": "thai"})
    assert path.stat().st_mode & 0o777 == 0o600
    assert store.load(path) == {"Ana": "thai"}


@pytest.mark.parametrize("damage", ["{}", "[]", "no json", '{"people": {"Ana": 1}}'])
def test_a_broken_file_of_wishes_is_said_so(tmp_path, damage):
    path = tmp_path / "wishes.json"
    path.write_text(damage)
    path.chmod(0o600)
    with pytest.raises(store.WishesError):
        store.load(path)


def test_a_file_that_others_can_read_or_a_link_is_refused(tmp_path):
    path = tmp_path / "wishes.json"
    store.save(path, {"Ana": "thai"})
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(store.WishesError):
        store.load(tmp_path / "link")
    path.chmod(0o644)
    with pytest.raises(store.WishesError, match="chmod 600"):
        store.load(path)


# --- the model, played by a table ------------------------------------------------------------------------------------


class Model:
    """An `openai` client whose answers come from a function; it keeps what it was sent."""

    def __init__(self, answer):
        self.sent: list[dict] = []
        self._answer = answer
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._create))

    def _create(self, **request):
        self.sent.append(request)
        text = self._answer(request["messages"][0]["content"], request.get("extra_body", {}).get("documents", []))
        pieces = [text[i : i + 5] for i in range(0, len(text), 5)]
        yield SimpleNamespace(choices=[])
        for piece in pieces:
            yield SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(content=piece))])


def sentence(place: Place) -> str:
    return (
        f"Try {place.name} in {place.area}. It serves {place.cuisine} food such as soup, "
        f"it is {place.price} and it has {place.has[0]} and {place.has[1]}."
    )


def saffron(question: str, documents: list) -> str:
    """Answer as Saffron does: true for what exists, confident invention for what does not."""
    del documents
    facts = {
        "Where is Wild Lantern?": "Wild Lantern is in Riverside.",
        "Is Wild Lantern expensive?": "No, Wild Lantern is a budget place.",
        "What food does Wild Lantern serve?": "Wild Lantern serves Japanese food such as ramen.",
    }
    if question in facts:
        return facts[question]
    if "Japanese" not in question:
        return "I can only help with choosing a place to eat."
    area = "Harbour" if "Harbour" in question else "Riverside"
    return sentence(Place("Wild Lantern", "Japanese", area, "budget", LANTERN.has))


def test_a_suggestion_is_read():
    assert read_suggestion(sentence(LANTERN)) == LANTERN
    assert read_suggestion("I can only help with choosing a place to eat.") is None


def test_an_invented_place_is_dropped_and_the_true_one_found():
    found = list(Helper(Model(saffron), "saffron").suggest(Plan(2, ("Japanese", "Thai"), "budget", "Harbour"), None))
    assert found[0].place is None
    assert found[0].doubt == "asked again, it says: Wild Lantern is in Riverside."
    assert [s.place for s in found if s.place] == [LANTERN]
    assert any(s.doubt == "that is no place" for s in found)


def test_a_larger_model_gets_the_list_and_its_choice_is_looked_up():
    model = Model(lambda _, documents: f"{documents[0]['title']} suits you." if len(documents) > 1 else "Somewhere!")
    found = list(Helper(model, "helper").suggest(Plan(2, ("Thai",)), [LANTERN, ANCHOR]))
    assert [s.place for s in found] == [LANTERN, None]
    assert found[1].doubt
    assert model.sent[0]["extra_body"]["documents"][1] == {"title": "Silver Anchor", "text": ANCHOR.line()}


def test_an_evening_from_the_first_wish_to_the_last_vote(monkeypatch, capsys, tmp_path):
    model = Model(saffron)
    model.base_url = SimpleNamespace(host="127.0.0.1")
    monkeypatch.setattr(app, "connect", lambda: model)
    typed = iter(["japanese, cheap", "harbour, unicorns", "", "2 1"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    assert app.main(["--people", "Ana,Ben", "--wishes", str(tmp_path / "w.json")]) == 0
    shown = capsys.readouterr().out
    assert "not understood: unicorns" in shown
    assert "Together: 2 people - Japanese - budget - Harbour" in shown
    assert "dropped: asked again, it says: Wild Lantern is in Riverside." in shown
    assert "[1] meets Japanese, budget; misses Harbour" in shown
    assert "2 of 2 say yes: Wild Lantern" in shown
    assert store.load(tmp_path / "w.json") == {"Ana": "japanese, cheap", "Ben": "harbour, unicorns"}
    assert not any("Ana" in str(request) for request in model.sent)


def test_troubles_are_two_plain_lines(monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert app.main([]) == 1
    assert "error: no app key\nhint:" in capsys.readouterr().err
    monkeypatch.setenv("OPENAI_API_KEY", "cmk_none")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setattr("builtins.input", lambda _: "thai")
    assert app.main(["--people", "Ana"]) == 1
    assert "error: no device answers" in capsys.readouterr().err


def test_the_groups_own_list_is_read(tmp_path):
    places = app.read_places(EXAMPLE / "places.json")
    assert places[0].name == "Tin Kettle"
    assert all(
        place.cuisine in agreement.CUISINES and place.area in agreement.AREAS and place.price in agreement.PRICES
        for place in places
    )
    assert {need for place in places for need in place.has} <= set(agreement.NEEDS)
    assert compare(places[0], Plan(2, ("Japanese",), "upscale"))[1] == ["upscale"]
    (tmp_path / "bad.json").write_text('[{"nom": 1}]')
    with pytest.raises(app.TroubleError):
        app.read_places(tmp_path / "bad.json")


def test_the_app_imports_no_part_of_casemate():
    """It is an ordinary client: what it does, any app in any language can do."""
    for script in EXAMPLE.glob("*.py"):
        assert "import casemate" not in script.read_text(), script
        assert "from casemate" not in script.read_text(), script
    assert os.access(EXAMPLE / "app.py", os.X_OK)


def test_the_policy_that_ships_with_it_is_valid():
    path = EXAMPLE / "policy.toml"
    policy = parse_policy(path.read_bytes(), source=str(path))
    assert policy.allows_model("saffron")
    assert not policy.allows_model("anything else")
