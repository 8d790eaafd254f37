# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Runs a long script part by part: says at the start what the parts are and how long each took the last time, and at the
# end how long each took now. Sourced by tests/run and .ci/run at the top of the tree.
# shellcheck shell=bash

declare -A needs=()  # FUNCTION: those of other parts that must have passed before it starts
declare -A inputs=() # FUNCTION: all that it tests; if nothing of this is newer than its last pass, it is not run again

# A PART is `FUNCTION TEXT`. AT_ONCE of them run side by side, earlier ones first. What a part prints is shown when it has
# ended, and is in a log until then; with AT_ONCE=1 it is shown at once. The first that fails ends the others and the
# script. FIRST says how long all take where no last time is known.
run_parts() { # NAME FIRST AT_ONCE PART...
    name=$1 first=$2 at_once=$3
    shift 3
    logs=${CARGO_TARGET_DIR:-target}/parts/$name times=$logs/times
    mkdir -p "$logs"
    rm -f "$logs"/*.log
    [ ! -f "$times" ] || first="the last time they took $(in_minutes "$(time_of all)")"
    echo "$name: $# parts, $at_once at a time; $first"
    for part; do
        printf '%s: %5s s  %s\n' "$name" "$(time_of "${part#* }")" "${part#* }"
    done

    waiting=("$@") done=() kept=()
    declare -gA running=() since=() passed=()
    set -m # each part is a process group, so that all it started can be ended
    trap end_parts EXIT
    trap 'exit 130' INT TERM HUP
    start_parts
    while [ ${#running[@]} -gt 0 ]; do
        await_part
        start_parts # not in a condition: there `set -e` would be ignored in the parts
    done
    report
    local all="$SECONDS all"
    [ ${#kept[@]} = 0 ] || all="$(time_of all) all"
    printf '%s\n' "${done[@]}" "${kept[@]}" "$all" >"$times.new"
    mv "$times.new" "$times"
    echo "PASS: $name: all parts"
}

in_minutes() { # SECONDS
    echo "$(($1 / 60)) min $(($1 % 60)) s"
}
time_of() { # TEXT: how long it took the last time, if that is known
    awk -v text="$1" '{ seconds = $1; sub(/^[0-9]+ /, "") } $0 == text { print seconds }' "$times" 2>/dev/null
}

start_parts() { # as many as may run now
    local part left=()
    for part in "${waiting[@]}"; do
        if ! may_start "${part%% *}"; then
            left+=("$part")
        elif is_unchanged "${part%% *}"; then
            keep_part "$part"
        elif [ ${#running[@]} -lt "$at_once" ]; then
            start_part "$part"
        else
            left+=("$part")
        fi
    done
    waiting=("${left[@]}")
}
may_start() { # FUNCTION
    local needed
    for needed in ${needs[$1]-}; do
        [ -n "${passed[$needed]-}" ] || return 1
    done
}
is_unchanged() { # FUNCTION: it passed, and none of its inputs changed since that began
    local stamp=$logs/$1.passed newer
    local -a files
    read -ra files <<<"${inputs[$1]-}"
    [ ${#files[@]} -gt 0 ] && [ -f "$stamp" ] && newer=$(find "${files[@]}" -newer "$stamp" -print -quit) && [ -z "$newer" ]
}
keep_part() { # PART
    echo "$name: --- not run again: ${1#* }: passed on $(date -r "$logs/${1%% *}.passed" '+%F %T'), and nothing that it tests changed"
    echo "$name:     (rm -r $logs has all parts run)"
    kept+=("$(time_of "${1#* }") ${1#* }")
    passed[${1%% *}]=1
}
start_part() { # PART
    local function=${1%% *} output log=
    rm -f "$logs/$function.passed"
    touch "$logs/$function.began"
    if [ "$at_once" = 1 ]; then exec {output}>&1; else log=$logs/$function.log && exec {output}>"$log"; fi
    echo "$name: --- ${1#* }${log:+ ($log)}"
    (set -e; "$function") </dev/null >&"$output" 2>&1 {output}>&- &
    exec {output}>&-
    running[$!]=$1 since[$!]=$SECONDS
}
await_part() { # one of those that run
    local process status=0 part
    wait -n -p process "${!running[@]}" || status=$?
    part=${running[$process]}
    unset "running[$process]"
    done+=("$((SECONDS - since[$process])) ${part#* }")
    passed[${part%% *}]=1
    if [ "$at_once" != 1 ]; then
        echo "$name: --- what it printed: ${part#* }"
        cat "$logs/${part%% *}.log"
    fi
    [ $status = 0 ] || { end_parts; report; echo "FAIL: $name: ${part#* }"; exit $status; }
    mv "$logs/${part%% *}.began" "$logs/${part%% *}.passed"
}
end_parts() { # those that still run, with all that they started
    local process
    for process in "${!running[@]}"; do
        kill -TERM -- "-$process" || true
    done 2>/dev/null
    wait 2>/dev/null
}
report() {
    local line
    echo "$name: $(in_minutes $SECONDS) in all:"
    for line in "${done[@]}"; do
        printf '%s: %5s s  %s\n' "$name" "${line%% *}" "${line#* }"
    done
    for line in "${kept[@]}"; do echo "$name: was not run: ${line#* }"; done
    for line in "${running[@]}"; do echo "$name: was ended:  ${line#* }"; done
}
