#!/bin/sh
# What an installed package has for its own developers and for compilers: out of the image, before it is compiled.
#
#   sh docker/prune.sh SITE_PACKAGES
#
# Nothing that a page of their documentation calls a feature goes, but for ITK: of its modules those that read and write
# images stay, and its filters go (240 MB).
set -eu
cd "$1"

# Tests of torch, pandas, scipy and others, and their data.
find . -depth -type d -name tests -exec rm -rf {} +
rm -rf torch/test torch/bin/*est* torch/bin/protoc*

# Headers and sources of what is compiled already; .pyi stays, by which scikit-image finds its parts.
rm -rf torch/include torch/share pyarrow/include pyarrow/src numpy/_core/include
find . -type f \( -name '*.c' -o -name '*.cpp' -o -name '*.h' -o -name '*.hpp' -o -name '*.pyx' -o -name '*.pxd' \) -delete

# Arrow's servers for other machines and other languages' plans.
rm -f pyarrow/libarrow*_flight* pyarrow/_flight* pyarrow/libarrow_substrait* pyarrow/_substrait* pyarrow/_pyarrow_cpp_tests*

# The parts of ITK that no reader or writer of images loads.
for module in FFT FiniteDifference ImageFunction ImageGrid IOMesh IOSpatialObjects IOTransform Mesh QuadEdgeMesh \
    TestKernel VTK Voronoi; do
    rm -f itk/_ITK"$module"*.so
done
