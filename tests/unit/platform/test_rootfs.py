"""The file system that the base image is made of where no registry answers."""

import sys
import tarfile

from brinery_platform.images import rootfs


def test_links_that_lead_nowhere_are_left_out(tmp_path, monkeypatch):
    zones = tmp_path / "zones"
    zones.mkdir()
    (zones / "UTC").write_bytes(b"TZif")
    (zones / "Zulu").symlink_to("UTC")
    (zones / "localtime").symlink_to("/etc/localtime")  # of the machine: not there in a container, not ours to copy
    (zones / "nowhere").symlink_to(tmp_path / "nothing")
    monkeypatch.setattr(rootfs, "TIME_ZONES", zones)
    found = rootfs.Rootfs(sys.executable)
    assert found.digest
    found.write(tmp_path / "root.tar")
    with tarfile.open(tmp_path / "root.tar") as archive:
        names = {name.rsplit("/", 1)[1] for name in archive.getnames() if "/zones/" in name}
    assert names == {"UTC", "Zulu"}
