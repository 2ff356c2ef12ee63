#!/usr/bin/env bash
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# ansible-test sanity, all of it, with the one Python that .venv has.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

# The pip that ansible-test 2.19 puts into its virtualenvs.
pip=24.2

exec 9>"$BUILD/sanity.lock"
flock 9

# A home of its own, so that the stand-in for get-pip is nobody else's. ansible-test hands on the home but not the rest
# of the environment: the way to the package index, as a file or as PIP_..., has to be found in there.
home=$BUILD/home
cache=$home/.ansible/test/cache
mkdir -p "$cache" "$home/.pip" "$home/.config/pip"
[ ! -e "$HOME/.config/pip/pip.conf" ] || ln -sfn "$HOME/.config/pip/pip.conf" "$home/.pip/pip.conf"
{
    printf '[global]\nquiet = 2\n'
    env | sed -n '/^PIP_\(CONFIG_FILE\|QUIET\|VERBOSE\)=/d; s/^PIP_\([A-Z_]*\)=/\L\1\E = /p'
} >"$home/.config/pip/pip.conf"
[ -e "$cache/pip-$pip-py3-none-any.whl" ] ||
    python -m pip download -q --disable-pip-version-check --no-deps --dest "$cache" "pip==$pip"
cp "$REPO/tests/sanity/get_pip.py" "$cache/get_pip_${pip/./_}.py"

# ansible-test takes the files that git knows, and git would see nothing below .build.
copy_tree "$BUILD/sanity"
cd "$BUILD/sanity/ansible_collections/kvmops/lifecycle"
git init -q

version=$(python -c 'import sys; print("{}.{}".format(*sys.version_info))')
log=$BUILD/sanity.log
if ! HOME=$home ansible-test sanity --color no --local --requirements --python "$version" >"$log" 2>&1; then
    cat "$log"
    exit 1
fi
# A test without its tool, or without anything to test, is only a warning to ansible-test.
if grep -iE 'skip|required program' "$log"; then
    echo "sanity: not everything was tested, see above"
    exit 1
fi
echo "$(grep -c '^Running sanity test' "$log") sanity tests passed on Python $version"
