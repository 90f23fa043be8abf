"""A small disk of a test's own, that can be filled: a tmpfs, where this machine permits to mount one."""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Final

BLOCK: Final = 1 << 16


class Disk:
    """A mounted tmpfs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def mount(cls, megabytes: int) -> "Disk | None":
        """Mount a disk where every user comes to it; None: this is not permitted here."""
        folder = Path(tempfile.mkdtemp(prefix="mobd-disk-"))
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", "mobd-test", str(folder)]
        if subprocess.run(command, check=False, capture_output=True).returncode == 0:
            return cls(folder)
        folder.rmdir()
        return None

    def fill(self) -> int:
        """Take all room that is left; return how many bytes that was."""
        file = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        size = BLOCK
        try:
            while size:
                try:
                    os.write(file, b"\0" * size)
                except OSError:
                    size //= 2
            return os.fstat(file).st_size
        finally:
            os.close(file)

    def free(self) -> None:
        """Give the room back."""
        self._ballast.unlink(missing_ok=True)

    def read_only(self, *, yes: bool) -> None:
        """Let nothing be written on it, or again; nothing may have a file on it open to write."""
        mode = "ro" if yes else "rw"
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.folder)], check=True, capture_output=True)

    def unmount(self) -> None:
        """Take it away, also from those who still use it."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True, capture_output=True)
        self.folder.rmdir()

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"
