#!/usr/bin/env bash
# validated.sh [--gpu] COMMAND...: runs it under the Khronos validation layer, core and synchronization; a message of the
# layer, or no layer, is a failure.
#   --gpu   GPU-assisted instead: the layer puts checks of every address into the shaders (docs/vulkan.md says which versions
#           can). Exit status 77 where the layer is too old.
set -uo pipefail
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export VK_INSTANCE_LAYERS=VK_LAYER_KHRONOS_validation VK_LOADER_DEBUG=layer
if [ "${1:-}" = --gpu ]; then
  shift
  oldest=1.4.363 manifest=()
  for folder in ${VK_LAYER_PATH:+${VK_LAYER_PATH//:/ }} /etc/vulkan/explicit_layer.d /usr/local/share/vulkan/explicit_layer.d \
    /usr/share/vulkan/explicit_layer.d; do
    manifest+=("$folder/VkLayer_khronos_validation.json")
  done
  version=$(cat "${manifest[@]}" 2>/dev/null | sed -nE 's/.*"api_version": *"([0-9.]+)".*/\1/p' | head -1)
  if [ -z "$version" ] || [ "$(printf '%s\n' "$oldest" "$version" | sort -V | head -1)" != "$oldest" ]; then
    echo "not run GPU-assisted: the validation layer is ${version:-not here}, and must be $oldest or newer"
    exit 77
  fi
  # Races in shared memory: it does not know that subgroupBarrier orders accesses.
  export VK_LAYER_GPUAV_ENABLE=1 VK_LAYER_VALIDATE_CORE=0 VK_LAYER_GPUAV_SHARED_MEMORY_DATA_RACE=0
else
  export VK_LAYER_ENABLES=VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT
fi
status=0
"$@" >"$log" 2>&1 || status=$?
if ! grep -qi 'inserted device layer.*khronos_validation' "$log"; then
  echo "the validation layer was not loaded (Debian: vulkan-validationlayers)"
  status=1
fi
# What the layer says of itself: the features that it adds to a device, and that its shaders compile slowly.
sed -i -E '/WARNING-Setting-Limit-Adjusted|GPUAV-Compile-time/d' "$log"
if grep -qE 'Validation (Error|Warning)|SYNC-HAZARD|UNASSIGNED-' "$log"; then
  grep -E -A12 'Validation (Error|Warning)|SYNC-HAZARD|UNASSIGNED-' "$log" | head -40
  status=1
fi
grep -vE '^ *(INFO|WARNING|LAYER|DEBUG)( \||:)|^\[Vulkan Loader\]|validation is adjusting settings|^'$'\t''|^ *$' "$log" | tail -40
exit $status
