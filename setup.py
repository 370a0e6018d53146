"""What pyproject.toml cannot say: classic_rl's tuned settings lie outside of its folder.

They are copied to ``classic_rl/configs`` of the wheel, as in that of classic_rl alone.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SETTINGS = Path("configs", "classic")


class BuildWithSettings(build_py):
    """`build_py`, and the settings; an editable installation finds them in the checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "classic_rl", "configs")
            shutil.copytree(SETTINGS, target, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithSettings})
