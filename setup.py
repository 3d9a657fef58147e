"""Packaging: `configs/` and `tools/` lie at the top of the checkout, and in a wheel as `vitdense.configs` and `.tools`.

They are copied here rather than mapped by `package_dir`: with a mapping an editable install is found only after the
folders in which Python runs, and a checkout called `vitdense` below one of them would be taken for the package.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPackages(build_py):
    """Copy the two folders into the package that is built; an editable install has them in the checkout."""

    def run(self):
        super().run()
        for name in () if self.editable_mode else ('configs', 'tools'):
            for source in Path(name).rglob('*.py'):
                target = Path(self.build_lib, 'vitdense', source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


setup(cmdclass={'build_py': BuildPackages})
