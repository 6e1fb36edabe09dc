#!/usr/bin/env bash
# validated.sh COMMAND...: runs it under the Khronos validation layer, core and synchronization; a message of the layer, or
# no layer, is a failure.
set -uo pipefail
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export VK_INSTANCE_LAYERS=VK_LAYER_KHRONOS_validation VK_LOADER_DEBUG=layer
export VK_LAYER_ENABLES=VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT
status=0
"$@" >"$log" 2>&1 || status=$?
if ! grep -qi 'inserted device layer.*khronos_validation' "$log"; then
  echo "the validation layer was not loaded (Debian: vulkan-validationlayers)"
  status=1
fi
if grep -qE 'Validation (Error|Warning)|SYNC-HAZARD|UNASSIGNED-' "$log"; then
  grep -E -A3 'Validation (Error|Warning)|SYNC-HAZARD|UNASSIGNED-' "$log" | head -40
  status=1
fi
grep -vE '^ *(INFO|WARNING|LAYER|DEBUG)( \||:)|^ *$' "$log" | tail -40
exit $status
