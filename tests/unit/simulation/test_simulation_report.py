"""The page that a comparison is told by: one file, nothing fetched, nothing small, every name harmless, and it says what is so."""

from __future__ import annotations

import copy
import itertools
import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from callback_priority.core.classes import ServiceClass
from callback_priority.simulation.comparison import compare
from callback_priority.simulation.report import write_report
from callback_priority.simulation.report.charts import _weights
from callback_priority.simulation.report.findings import find
from callback_priority.simulation.report.plots import Band as OverTime
from callback_priority.simulation.report.plots import strip, time_axis, wait_axis
from callback_priority.simulation.report.words import plain
from callback_priority.simulation.scenario_file import load_scenario
from tests.support.browser import browser, opened
from tests.support.pages import problems

SCENARIO = """
description = "Alerts & <b>tasks</b>"
seconds = 900
slots = 4

[[work]]
name = "tasks"
class = "task"
arrivals = {kind = "endless"}
holds = {kind = "exponential", mean_seconds = 30}

[[work]]
name = "alerts"
class = "deadline"
dags = 3
arrivals = {kind = "poisson", per_second = 0.2}
holds = {kind = "fixed", seconds = 4}

[settings."tasks first"]
policy = "tasks_first"

[settings.fair]

[settings."fair, 1 reserved"]
slot_quotas = '{"deadline": {"reserve": 1}}'
"""
HOSTILE = (
    '</style></svg><script>alert(1)</script><img src="https://x.example/a.png" onerror=a()>"\'&\x00\u202eevil'
)
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Parsed(HTMLParser):
    """Tags, attributes and text; every tag that opens has to close, in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.style = [], [], [], ""
        self._open = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "style":
            self.style += data
        else:
            self.text.append(data)

    @property
    def said(self):
        """The text as a reader sees it."""
        return re.sub(r"\s+", " ", "".join(self.text))


@pytest.fixture(scope="module")
def comparison():
    file = load_scenario(SCENARIO, "storm")
    return json.loads(json.dumps(compare(file.scenario, file.treatments, seeds=(0, 1, 2)).to_json()))


@pytest.fixture
def changed(comparison):
    return copy.deepcopy(comparison)


@pytest.fixture
def written(tmp_path):
    def write(found, **given):
        path = tmp_path / "report.html"
        write_report(found, path, **given)
        return Parsed(path.read_text(encoding="utf-8"))

    return write


def estimate(mean, half=1.0, n=3):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def test_nothing_is_fetched(comparison, written):
    page = written(comparison)
    assert not {"script", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name in {"src", "href", "xlink:href", "srcset", "action", "data"}:
            assert value.startswith(("data:", "#")), (tag, name, value)
        assert not name.startswith("on"), (tag, name, value)
    assert "url(" not in page.style
    assert "@import" not in page.style
    policy = [value for _, name, value in page.attributes if name == "content" and "default-src" in value]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_no_text_is_smaller_than_11_pixels_and_none_is_scaled(comparison, written):
    page = written(comparison)
    sizes = [float(each) for each in re.findall(r"font(?:-size)?: (?:\d+ )?([\d.]+)px", page.style)]
    assert len(sizes) == len(re.findall(r"font(?:-size)?:(?! inherit)", page.style))
    assert min(sizes) >= 11
    assert not [each for each in page.attributes if each[1] in {"font-size", "style", "transform"}]
    assert "scale(" not in page.style


def test_what_is_stretched_holds_no_text(comparison, tmp_path):
    path = tmp_path / "report.html"
    write_report(comparison, path)
    stretched = re.findall(r"<svg [^>]*viewBox[^>]*>(.*?)</svg>", path.read_text(encoding="utf-8"))
    assert stretched
    assert not [each for each in stretched if "<text" in each]


def test_every_class_and_treatment_is_named_in_every_section_that_is_about_them(comparison, written):
    said = written(comparison).said
    sections = re.split(
        r"Every class in numbers|How long they wait|What they got|Who holds the slots|How far classes|The Dags that|What was tried",
        said,
    )
    assert len(sections) == 8
    for section in sections[1:]:
        for treatment in comparison["treatments"]:
            assert treatment["name"] in section
    for section in sections[1:-1]:
        assert "deadline" in section
    for treatment in comparison["treatments"]:
        for option, text in treatment["settings"].items():
            assert f"{option} = {text}" in said


def test_names_that_somebody_gave_stay_text(changed, written):
    changed["scenario"]["name"] = changed["scenario"]["description"] = HOSTILE
    changed["scenario"]["pools"] = {HOSTILE: 3}
    for number, treatment in enumerate(changed["treatments"]):
        treatment["name"] = f"{number}{HOSTILE}"
        treatment["settings"] = {HOSTILE: HOSTILE}
        treatment["changes"] = [{"at_seconds": 3, "settings": {HOSTILE: HOSTILE}}]
        treatment["accounting"] = HOSTILE
        for found in treatment["classes"].values():
            for dag in found["dags"]:
                dag["name"] = HOSTILE
        for key in ("classes", "differences"):
            if treatment[key]:
                treatment[key][HOSTILE] = treatment[key].pop("deadline")
        for found in treatment["contention"]:
            found["classes"] = [HOSTILE if cls == "deadline" else cls for cls in found["classes"]]
            for key in ("share", "entitlement"):
                found[key][HOSTILE] = found[key].pop("deadline")
        for lag in treatment["lags"]:
            lag["first"] = HOSTILE
    page = written(changed, notes=[HOSTILE])
    assert not {"script", "img", "b"} & set(page.tags)
    assert page.tags.count("style") == 1
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.said
    assert "\x00" not in page.said
    assert "\u202e" not in page.said


def test_what_no_encoding_holds_is_written_all_the_same(changed, tmp_path):
    changed["treatments"][0]["name"] = "half \ud800 a letter"
    write_report(changed, tmp_path / "report.html")
    assert plain("half \ud800") in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_headline_tells_who_waits_least_and_what_it_costs(comparison, written):
    page = written(comparison)
    found = find(comparison)
    assert found.headline.startswith(
        "Deadline callbacks wait least under “<bdi>fair, 1 reserved</bdi>”: 95 of 100 start within"
    )
    assert "Under “<bdi>tasks first</bdi>”, none of" in found.headline
    assert "<strong>tasks</strong> hold" in found.cost
    assert "“fair”" in page.said
    assert re.search(r"confidence intervals in brackets", page.said)


def test_a_median_that_gets_worse_is_told_where_the_unlucky_gain(changed):
    """Shorter turns of a Dag: the last wait less and the middle waits more."""
    first, second, *_ = changed["treatments"]
    for treatment, median, late in ((first, 30, 100), (second, 40, 70)):
        found = treatment["classes"]["deadline"]
        found["arrived"] = found["started"] = estimate(100, 0)
        found["waiting"] = estimate(0, 0)
        found["wait_seconds"] = {
            "0.5": estimate(median),
            "0.95": estimate(late),
            "0.99": estimate(late),
            "1.0": estimate(late),
        }
    second["differences"]["deadline"] = {
        "share": estimate(0, 0),
        "waiting": estimate(0, 0),
        "wait_seconds": {
            "0.5": estimate(10),
            "0.95": estimate(-30),
            "0.99": estimate(-30),
            "1.0": estimate(-30),
        },
    }
    second["differences"]["task"]["share"] = estimate(0, 0)
    changed["treatments"] = [first, second]
    found = find(changed)
    assert found.headline.startswith("Deadline callbacks wait least under “<bdi>fair</bdi>”")
    assert "half start within" in found.cost
    (versus,) = found.versus
    assert any("95 of 100" in each and "sooner" in each for each in versus.gains)
    assert any("half start" in each and "later" in each for each in versus.pains)


def test_a_class_that_gains_while_most_of_its_dags_lose_is_told_so(changed):
    """One Dag floods its class: the class's quantiles are mostly its own."""
    first, second, *_ = changed["treatments"]
    for treatment, others in ((first, 40), (second, 3_600)):
        found = treatment["classes"]["deadline"]
        found["arrived"], found["waiting"] = estimate(100, 0), estimate(0, 0)
        found["wait_seconds"] = {key: estimate(5_000) for key in ("0.5", "0.95", "0.99", "1.0")}
        found["dags"] = [
            {"dag": dag, "name": f"dag {dag}", "p50": 1, "p95": p95}
            for dag, p95 in enumerate((7_000, others))
        ]
    changed["treatments"] = [first, second]
    (versus,) = find(changed).versus
    assert any("1\N{NO-BREAK SPACE}slowest Dag left out" in each for each in versus.pains)
    first["classes"], second["classes"] = second["classes"], first["classes"]
    (versus,) = find(changed).versus
    assert any("slowest Dag left out" in each for each in versus.gains)


def test_what_may_be_chance_is_no_difference(changed):
    first, second, *_ = changed["treatments"]
    second["classes"] = copy.deepcopy(first["classes"])
    for treatment in (first, second):
        found = treatment["classes"]["deadline"]
        found["waiting"] = estimate(0, 0)
        found["started"] = found["arrived"]
        found["wait_seconds"] = {key: estimate(50, 9) for key in ("0.5", "0.95", "0.99", "1.0")}
    second["classes"]["deadline"]["wait_seconds"]["0.95"] = estimate(45, 9)
    second["utilisation"] = first["utilisation"]
    for difference in second["differences"].values():
        difference["share"], difference["waiting"] = estimate(0.1, 0.2), estimate(3, 4)
        difference["wait_seconds"] = dict.fromkeys(difference["wait_seconds"], estimate(-5, 6))
    changed["treatments"] = [first, second]
    found = find(changed)
    assert found.headline == "No class waits longer or shorter between these 2 settings beyond chance"
    assert found.versus[0].gains == found.versus[0].pains == ()
    assert found.versus[0].same == ("deadline callbacks", "tasks")
    second["differences"]["deadline"]["wait_seconds"]["0.95"] = estimate(-5, 4)
    assert find(changed).headline.startswith("Deadline callbacks wait least under “<bdi>fair</bdi>”")


def test_one_treatment_and_one_seed_have_a_page_too(written):
    file = load_scenario(SCENARIO, "storm")
    alone = compare(file.scenario, file.treatments[1:2], seeds=(3,)).to_json()
    page = written(alone)
    assert "one seed: no intervals" in page.said
    assert "Under “fair”" in page.said


def test_a_comparison_of_endless_work_alone_has_a_page_too(written):
    text = SCENARIO[: SCENARIO.index('[[work]]\nname = "alerts"')] + SCENARIO[SCENARIO.index("[settings.") :]
    file = load_scenario(text, "storm")
    page = written(compare(file.scenario, file.treatments, seeds=(0, 1)).to_json())
    assert "Nothing arrived that could wait" in page.said
    assert "Never did two classes wait at once" in page.said


def test_notes_stand_in_the_page(comparison, written):
    assert (
        "What was assumed Pools were as they are now."
        in written(comparison, notes=["Pools were as they are now."]).said
    )


def test_lags_say_whether_the_bound_is_promised(comparison, written):
    said = written(comparison).said
    assert "tasks first: not promised, another policy than fair" in said
    assert "fair: promised" in said
    assert "fair, 1 reserved: not promised, something is reserved or limited" in said


def test_waits_over_decades_are_on_a_logarithmic_scale():
    assert not wait_axis([10, 40]).is_log
    axis = wait_axis([0.0, 0.5, 40_000])
    assert axis.is_log
    assert axis.at(0.0) == 0.0
    assert 90 < axis.at(40_000) <= 100
    assert 2 <= len(axis.ticks) <= 5
    assert wait_axis([]).at(0) == wait_axis([0.0]).at(0) == 0


@pytest.mark.parametrize("longest", [0.0, 0.003, 1, 59, 61, 3_600, 86_400, 1e7, 1e9])
def test_an_axis_of_time_has_a_few_round_labels_and_room_for_the_longest(longest):
    axis = time_axis(longest)
    assert axis.high >= longest
    assert 2 <= len(axis.ticks) <= 6
    assert axis.ticks[0] == 0


def test_a_strip_has_shades_where_it_waited_and_dashes_where_it_was_entitled():
    drawn = strip(
        time_axis(40),
        OverTime(held=[0.5, 0.5, 1, 0], entitled=[None, 0.5, 0.5, None], waited=[0, 1, 1, 0.1]),
        "x",
    )
    assert re.findall(
        r'class="shade" x="([\d.]+)%" width="([\d.]+)%" height="84" opacity="([\d.]+)"', drawn
    ) == [
        ("25.00", "50.00", "1"),
        ("75.00", "25.00", "0.25"),
    ]
    assert 'class="entitled" d="M1 0.5H2H3"' in drawn


def test_weights_follow_from_what_classes_were_entitled_to_together():
    weights = _weights(
        [
            {"entitlement": {"deadline": 0.75, "task": 0.25}},
            {"entitlement": {"task_callback": 0.8, "dag_callback": 0.2}},
            {"entitlement": {"task": 0.5, "dag_callback": 0.5}},
        ]
    )
    assert weights["deadline"] / weights["task"] == pytest.approx(3)
    assert weights["task"] == pytest.approx(weights["dag_callback"])
    assert weights["task_callback"] / weights["dag_callback"] == pytest.approx(4)


# Colours, as colour-blind people see them: Machado, Oliveira and Fernandes (2009), "A physiologically-based model for simulation of color
# vision deficiency", at full severity.
VISION = {
    "any": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deutan": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritan": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}


def lab(colour, vision):
    """CIE 1976 L*a*b* of a colour of sRGB."""
    linear = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in linear]
    seen = [min(1, max(0, sum(a * b for a, b in zip(row, linear, strict=True)))) for row in vision]
    matrix = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    white = (0.9505, 1, 1.089)
    xyz = [
        sum(a * b for a, b in zip(row, seen, strict=True)) / whole
        for row, whole in zip(matrix, white, strict=True)
    ]
    x, y, z = (each ** (1 / 3) if each > 216 / 24389 else each * 24389 / 27 / 116 + 16 / 116 for each in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("vision", VISION)
def test_the_classes_colours_are_told_apart_by_everyone(vision):
    style = files("callback_priority.simulation.report").joinpath("style.css").read_text(encoding="utf-8")
    for scheme in style.split("prefers-color-scheme: dark", 1):
        colours = {cls: re.search(rf"--{cls.value}: (#\w+)", scheme)[1] for cls in ServiceClass}
        for one, other in itertools.combinations(colours.values(), 2):
            first, second = lab(one, VISION[vision]), lab(other, VISION[vision])
            assert sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) ** 0.5 > 12, (one, other)


# In a real browser ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page():
    """Its absence is a failure, never a skip."""
    path = browser()
    assert path, "there is no Chromium: `make test` brings one; else install one, or name it by CHROMIUM"
    with opened(path) as page:
        yield page


def test_in_a_real_browser_nothing_is_fetched_small_pale_or_too_wide(changed, tmp_path, page):
    path, long = tmp_path / "report.html", tmp_path / "long.html"
    write_report(changed, path)
    changed["treatments"][1]["name"] = "fair_with_a_very_long_name_that_has_no_place_to_break_" * 3
    changed["treatments"][2]["name"] = HOSTILE
    for found in changed["treatments"][1]["classes"].values():
        for dag in found["dags"]:
            dag["name"] = "a_dag_with_a_name_of_about_the_length_that_people_give_to_their_dags"
    write_report(changed, long, notes=["What was assumed. " * 20])
    assert problems(page, path) == []
    assert problems(page, long) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('<p style="font-size: 10px">x</p>', "text of 10.0 px"),
        ('<svg width="100" viewBox="0 0 200 20"><text x="9" y="15">x</text></svg>', "text of 6.0 px"),
        ('<p style="width: 1500px">x</p>', "scrolls sideways"),
        ('<p style="color: #808080">x</p>', "text with a contrast"),
        ('<img src="https://localhost:9/x.png">', "https://localhost:9/x.png"),
    ],
)
def test_the_browser_sees_what_is_wrong(comparison, tmp_path, page, wrong, said):
    """The negative control of the test above."""
    path = tmp_path / "report.html"
    write_report(comparison, path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("</main>", f"{wrong}</main>"), encoding="utf-8")
    assert any(said in each for each in problems(page, path))
