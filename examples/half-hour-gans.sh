#!/bin/sh
# Phantom lesions, three DCGANs and their evaluation, in half an hour on two cores. Run it again to resume.
#     examples/half-hour-gans.sh [FOLDER]
set -eu
here=$(dirname "$0")
out=${1:-half-hour-gans}
mkdir -p "$out"
[ -d "$out/slices" ] || lesionaug phantom "$out/slices"
[ -d "$out/rois" ] || lesionaug data import "$out/slices" "$out/rois"
lesionaug gan train "$out/rois" "$out/gans" --config "$here/half-hour-gans.toml"
lesionaug gan evaluate "$out/rois" "$out/gans"
echo "Look at $out/gans/figures/samples.png and $out/gans/evaluation/gallery.png"
