"""Settings: flags over environment over defaults; nothing unknown, nothing secret shown."""

from pathlib import Path

import pytest

from serve.__main__ import main
from serve.errors import StartupError
from serve.settings import ServeSettings, load_settings


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHISERVE_PORT", "9001")
    monkeypatch.setenv("PHISERVE_MAX_N", "3")
    settings = load_settings(["--port", "9002"])
    assert (settings.port, settings.max_n) == (9002, 3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--port", "80"], "port"),
        (["--port", "http"], "port"),
        (["--runner", "fast"], "'auto', 'torch' or 'native'"),
        (["--prt", "8000"], "--prt"),
        (["--host", "example.org"], "host"),
        (["--api-keys", "secret"], "--api-keys"),
        (["--api-keys-file", "/no/such/file"], "name a file that exists"),
        (["stray"], "stray"),
    ],
)
def test_a_bad_flag_is_one_line_that_names_it(flags: list[str], said: str) -> None:
    with pytest.raises(StartupError, match=r"^[^\n]+$") as failure:
        load_settings(flags)
    assert said in str(failure.value)


def test_an_unknown_variable_of_ours_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHISERVE_PROT", "8000")
    with pytest.raises(StartupError, match="PHISERVE_PROT"):
        load_settings([])


def test_keys_come_from_environment_and_file_and_are_never_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text("sesame3\nsesame4\n")
    monkeypatch.setenv("PHISERVE_API_KEYS", "sesame1, sesame2")
    settings = load_settings(["--api-keys-file", str(file)])
    assert settings.secret_keys() == ("sesame1", "sesame2", "sesame3", "sesame4")
    assert "sesame" not in settings.described() + repr(settings)
    assert "api_keys=4" in settings.described()


def test_each_setting_says_what_it_is() -> None:
    assert all(field.description for field in ServeSettings.model_fields.values())


def test_help_lists_every_flag_but_the_secret(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load_settings(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    flags = {"--" + name.replace("_", "-") for name in ServeSettings.model_fields} - {"--api-keys"}
    assert all(flag in shown for flag in flags)


def test_a_model_that_is_not_there_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "no_such_model"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("phiserve: ")
    assert "no_such_model" in error
    assert error.count("\n") == 1


def test_a_port_in_use_is_one_line_and_exit_code_2(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert main(["--model", str(tiny_model), "--port", str(port)]) == 2
    assert f"port {port}" in capsys.readouterr().err
