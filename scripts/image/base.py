"""The base image by its own name: pulled, or, where no registry can be reached, a stand-in from Debian packages.

The stand-in is Debian with its CPython 3.11, the machine's CA certificates, and `python` and `pip` where the official
image has them, so that the Dockerfile runs unmodified on it. It carries a label; nobody takes it for the official one.
"""

import shutil
from pathlib import Path

from image.tools import Containers, VerificationError, say

BASE = "docker.io/library/python:3.11-slim"
STAND_IN_LABEL = "phiserve.stand-in"
PULL_SECONDS = 60
SUITE = "bookworm"
PACKAGES = "ca-certificates,python3,python3-pip"
# What the slim images of Debian leave out as well.
LEFT_OUT = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale", "var/log")
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"


def provide_base(containers: Containers, mirror: str) -> str:
    """Have BASE in the storage. Returns what it is, in words."""
    if not containers.has_image(BASE):
        pulled = containers.run("timeout", str(PULL_SECONDS), "podman", "pull", "--quiet", BASE, check=False)
        if pulled.returncode != 0:
            reason = pulled.stderr.strip().splitlines()[-1:] or [f"no answer within {PULL_SECONDS} s"]
            say(f"{BASE} cannot be pulled ({reason[0][-160:]}): making a stand-in")
            _import_stand_in(containers, mirror)
    labels = containers.inspect("image", BASE).get("Labels") or {}
    assert isinstance(labels, dict)
    return "a stand-in: " + labels[STAND_IN_LABEL].strip("'") if STAND_IN_LABEL in labels else f"{BASE} as pulled"


def _import_stand_in(containers: Containers, mirror: str) -> None:
    archive = containers.folder / f"stand-in-{SUITE}.tar"
    if not archive.is_file():
        _make_archive(containers, archive, mirror)
    words = f"Debian {SUITE} with its CPython 3.11"
    containers.podman(
        *("import", "--change", f"LABEL {STAND_IN_LABEL}='{words}'"),
        *("--change", "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"),
        *("--change", "ENV LANG=C.UTF-8", "--change", 'CMD ["python3"]'),
        *(str(archive), BASE),
        timeout=300,
    )


def _make_archive(containers: Containers, archive: Path, mirror: str) -> None:
    root = containers.folder / "stand-in"
    shutil.rmtree(root, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root), mirror]
    containers.run_logged(command, containers.folder / "debootstrap.log")
    _shape_like_official(root)
    partial = archive.with_suffix(".partial")
    containers.run("tar", "--numeric-owner", "-C", str(root), "-cf", str(partial), ".", timeout=300)
    partial.replace(archive)
    shutil.rmtree(root)


def _shape_like_official(root: Path) -> None:
    for name in LEFT_OUT:
        for path in (root / name).glob("*"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name, target in {
        "python": "python3.11",
        "python3": "python3.11",
        "python3.11": "python3.11",
        "pip": "pip3",
    }.items():
        (root / "usr/local/bin" / name).symlink_to(f"/usr/bin/{target}")
    # The official image's pip installs into the system; Debian's refuses.
    (root / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink(missing_ok=True)
    machine = Path("/") / CERTIFICATES
    if not machine.is_file():
        raise VerificationError(f"{machine} is not there; run: apt-get install -y ca-certificates")
    shutil.copyfile(machine, root / CERTIFICATES)
