"""The store against a model of it: publish, alias, damage, remove, in any order, with a clock that jumps."""

import shutil
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model_store.manifest import MANIFEST_FILE
from model_store.store import ModelStore
from tests.store.folders import flip_bit, write_checkpoint

NAMES = st.sampled_from(["a", "b-2"])
ALIASES = st.sampled_from(["production", "best", "v1"])
VERSIONS = st.sampled_from([None, None, None, "v1", "7", "0.1"])
FILES = ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors", "chat/template.jinja"]


@dataclass
class ExpectedVersion:
    damage: dict[str, str] = field(default_factory=dict)  # kind by file

    @property
    def manifest_damaged(self) -> bool:
        return MANIFEST_FILE in self.damage


@dataclass
class ExpectedName:
    versions: dict[str, ExpectedVersion] = field(default_factory=dict)  # in the order published
    aliases: dict[str, str] = field(default_factory=dict)

    def resolve(self, selector: str | None) -> str | None:
        """None: an error is expected."""
        if selector is None:
            selector = "production" if "production" in self.aliases else "latest"
        if selector == "latest":
            damaged = any(version.manifest_damaged for version in self.versions.values())
            return None if damaged or not self.versions else list(self.versions)[-1]
        if selector not in self.versions:
            selector = self.aliases.get(selector, "")
        return selector if selector in self.versions else None


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.source = write_checkpoint(self.folder / "source")
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.store = ModelStore(self.folder / "models", clock=lambda: self.now)
        self.expected = {"a": ExpectedName(), "b-2": ExpectedName()}

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def some_version(self, data: st.DataObject) -> tuple[str, str, ExpectedVersion]:
        known = [(name, version) for name, model in self.expected.items() for version in model.versions]
        name, version = data.draw(st.sampled_from(known))
        return name, version, self.expected[name].versions[version]

    def has_versions(self) -> bool:
        return any(model.versions for model in self.expected.values())

    @rule(moment=st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)))
    def clock_jumps(self, moment: datetime) -> None:
        self.now = moment

    @rule(name=NAMES, version=VERSIONS)
    def publish(self, name: str, version: str | None) -> None:
        model = self.expected[name]
        if version in model.versions or version in model.aliases:
            with pytest.raises(ValueError, match="exists already"):
                self.store.publish(self.source, name, version=version)
            return
        numbers = [int(known) for known in model.versions if known.isdecimal()]
        published = self.store.publish(self.source, name, version=version)
        assert published.version == (version or str(max(numbers, default=0) + 1))
        model.versions[published.version] = ExpectedVersion()

    @precondition(has_versions)
    @rule(alias=ALIASES, data=st.data())
    def set_alias(self, alias: str, data: st.DataObject) -> None:
        name, version, expected = self.some_version(data)
        model = self.expected[name]
        if alias in model.versions or expected.damage.get(MANIFEST_FILE) == "missing":
            with pytest.raises(ValueError, match=r"is a version|has no manifest"):
                self.store.set_alias(name, alias, version)
            return
        self.store.set_alias(name, alias, version)
        model.aliases[alias] = version

    @rule(name=NAMES, alias=ALIASES)
    def remove_alias(self, name: str, alias: str) -> None:
        if self.expected[name].aliases.pop(alias, None) is None:
            with pytest.raises(ValueError, match="not set"):
                self.store.remove_alias(name, alias)
        else:
            self.store.remove_alias(name, alias)

    @precondition(has_versions)
    @rule(file=st.sampled_from([*FILES, *FILES, MANIFEST_FILE]), position=st.integers(0, 10_000), data=st.data())
    def flip_one_bit(self, file: str, position: int, data: st.DataObject) -> None:
        name, version, expected = self.some_version(data)
        if file not in expected.damage:
            flip_bit(self.store.root / name / version / file, position)
            expected.damage[file] = "manifest" if file == MANIFEST_FILE else "changed"

    @precondition(has_versions)
    @rule(file=st.sampled_from([*FILES, MANIFEST_FILE]), data=st.data())
    def remove_file(self, file: str, data: st.DataObject) -> None:
        name, version, expected = self.some_version(data)
        if expected.damage.get(file) != "missing":
            (self.store.root / name / version / file).unlink()
            if file == "chat/template.jinja":  # an emptied folder would be found too
                (self.store.root / name / version / "chat").rmdir()
            expected.damage[file] = "missing"

    @precondition(has_versions)
    @rule(file=st.sampled_from(["extra.txt", ".hidden", "weights.bin"]), data=st.data())
    def add_file(self, file: str, data: st.DataObject) -> None:
        name, version, expected = self.some_version(data)
        (self.store.root / name / version / file).write_text("")
        expected.damage[file] = "extra"

    @precondition(has_versions)
    @rule(data=st.data())
    def remove_version(self, data: st.DataObject) -> None:
        name, version, _ = self.some_version(data)
        shutil.rmtree(self.store.root / name / version)
        del self.expected[name].versions[version]

    @invariant()
    def every_reference_leads_where_it_should(self) -> None:
        for name, model in self.expected.items():
            for selector in [None, "latest", "production", "best", "v1", "7", "1", "nowhere"]:
                reference = name if selector is None else f"{name}@{selector}"
                version = model.resolve(selector)
                if version is None or model.versions[version].damage.get(MANIFEST_FILE) == "missing":
                    with pytest.raises(ValueError, match=name):
                        self.store.resolve(reference)
                else:
                    assert self.store.resolve(reference).path == self.store.root / name / version

    @invariant()
    def verify_finds_exactly_the_damage(self) -> None:
        for name, model in self.expected.items():
            for version, expected in model.versions.items():
                if expected.damage.get(MANIFEST_FILE) == "missing":
                    continue  # such a folder cannot be named: the invariant above
                problems = {problem.file: problem.kind for problem in self.store.verify(f"{name}@{version}").problems}
                damage = {MANIFEST_FILE: "manifest"} if expected.manifest_damaged else expected.damage
                assert problems == damage

    @invariant()
    def the_list_shows_every_version_once_with_its_aliases(self) -> None:
        listed = {(entry.name, entry.version): entry for entry in self.store.list()}
        assert len(listed) == len(self.store.list())
        assert set(listed) == {(name, version) for name, model in self.expected.items() for version in model.versions}
        for (name, version), entry in listed.items():
            model = self.expected[name]
            aliases = {alias for alias, target in model.aliases.items() if target == version}
            if model.resolve("latest") == version:
                aliases.add("latest")
            assert set(entry.aliases) == aliases
            assert (entry.problem is not None) == model.versions[version].manifest_damaged


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=10, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
