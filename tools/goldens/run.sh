#!/bin/sh
# Makes the goldens again. PYTHON has requirements.txt, PYTHON_4_39 has requirements-respond.txt.
#
#     PYTHON=… tools/goldens/run.sh checkpoints             the random checkpoints, their goldens, the mutations
#     PYTHON=… PYTHON_4_39=… tools/goldens/run.sh nano      nano.json and respond.json, after crates/rigel-nano/model has changed
#     PYTHON=… tools/goldens/run.sh tokenizer               tokenizer_files.json
set -eu
cd "$(dirname "$0")/../.."
here=tools/goldens
case "${1:-}" in
checkpoints)
    "$PYTHON" $here/checkpoints.py
    "$PYTHON" $here/goldens.py
    "$PYTHON" $here/half.py random
    "$PYTHON" $here/mutations.py
    ;;
nano)
    "$PYTHON" $here/nano.py
    "$PYTHON" $here/half.py nano
    "$PYTHON_4_39" $here/respond.py
    ;;
tokenizer)
    "$PYTHON" $here/tokenizer_files.py
    ;;
*)
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
