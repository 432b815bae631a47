# What the test scripts share: checks that are counted and timed. Sourced, never run.

PASSED=0
FAILED=0

# check WHAT COMMAND..: runs a command as one check. Its output is shown when it fails; lines that begin with `measured:`
# always are.
check() {
  local what=$1 began output
  shift
  began=$(now_ms)
  if output=$("$@" 2>&1); then
    PASSED=$((PASSED + 1))
    printf 'PASS %-62s %6d ms\n' "$what" $(($(now_ms) - began))
    grep '^measured:' <<<"$output" || true
  else
    FAILED=$((FAILED + 1))
    printf 'FAIL %-62s %6d ms\n%s\n' "$what" $(($(now_ms) - began)) "$output"
  fi
}
# The last line that a test script prints; its exit code is the answer.
conclude() {
  echo "$PASSED passed, $FAILED failed"
  [ "$FAILED" = 0 ]
}
