# shellcheck shell=bash
# The publisher: patients of its own, a model, a signed release, a tar for the site. Sourced by docker/smoke_test.sh.

publisher() {  # overtile, where /data are the publisher's patients
    inside --rm --volume "$NOW/publisher:/data:ro" --volume "$NOW/published:/out" "$IMAGE" "$@"
}

patients() {  # FOLDER PATIENTS SECTIONS SEED: a hospital's patients, one folder each
    inside --rm --volume "$1:/data" "$IMAGE" phantom em /data --patients "$2" --sections "$3" --seed "$4" --size 64
}

index() {
    cat >"$NOW/published/recipe.yaml" <<'YAML'
name: phantom_em
image: "{patient}/image.tif"
label: "{patient}/label.tif"
classes: {cell: 255, membrane: 0}
YAML
    publisher index /data --recipe /out/recipe.yaml --public --out /out/manifest.json
    publisher split /out/manifest.json --fractions 0.6 0.2 0.2
    publisher audit /out/manifest.json --dataset-dir /data
}

train() {  # long enough that a model can be worse; then a look at what MLflow says of it
    publisher run "$BUNDLE" training --manifest /out/manifest.json --dataset_dir /data --output_dir /out/run \
        --epochs 20 --patch 64 --patches_per_case 1 --width 8 --learning_rate 0.003 --workers 1
    publisher evaluate --bundle "$BUNDLE" --manifest /out/manifest.json --dataset-dir /data \
        --checkpoint /out/run/model.pt --output /out/run --width 8
    runs "$NOW/published/run/mlflow.db" FINISHED FINISHED
}

runs() {  # STORE STATUS...: of the MLflow runs, in the order of their starts
    local found store=$1
    shift
    found=$("$PYTHON" - "$store" <<'PYTHON'
import sqlite3
import sys

print(*(row[0] for row in sqlite3.connect(sys.argv[1]).execute("select status from runs order by start_time")))
PYTHON
    )
    echo "MLflow runs: $found, expected $*"
    [ "$found" = "$*" ]
}

release() {
    publisher release /out/run --out /out --key /out/publisher.key --recipe /out/recipe.yaml
    ls "$NOW"/published/"$BUNDLE"-*.zip
}

site_tar() {
    make -C "$REPO" site RELEASE="$(echo "$NOW"/published/*.zip)" KEY="$NOW/published/publisher.pub" OUT="$NOW"
}
