/* moiety devices */
#include <stdio.h>
#include <string.h>

#include "bench/commands.h"
#include "bench/options.h"

#if defined(MOI_HAVE_VULKAN)
#include <moiety_vulkan.h>

/* What a Vulkan device has not, of what would make it faster. */
static void print_wishes(const moi_context *context) {
  moi_vulkan_handles_out h = MOI_VULKAN_HANDLES_INIT;
  moi_vulkan_requirement r = MOI_VULKAN_REQUIREMENT_INIT;
  if (moi_vulkan_handles(context, &h)) return;
  for (uint32_t i = 0; !moi_vulkan_requirements(h.get_instance_proc_addr, h.instance, h.physical_device, i, &r); i++)
    if (!r.supported) printf("  %-9s %s %s: %s\n", "lacks", r.kind, r.name, r.use);
}
#endif

/* Whether a context can be made on it, and if not why. */
static void print_use(moi_backend backend, uint32_t index) {
  moi_context_desc desc = MOI_CONTEXT_DESC_INIT;
  moi_context *context = NULL;
  desc.backend = backend;
  desc.device = index;
  if (moi_context_create(&desc, &context)) {
    printf("  %-9s %s\n", "unusable", moi_last_error());
    return;
  }
#if defined(MOI_HAVE_VULKAN)
  if (backend == MOI_BACKEND_VULKAN) print_wishes(context);
#endif
  moi_context_destroy(context);
}

static void print_size(const char *what, uint64_t bytes) {
  if (bytes >> 30) printf("  %-9s %.1f GiB\n", what, (double)bytes / (1 << 30));
  else if (bytes) printf("  %-9s %.1f MiB\n", what, (double)bytes / (1 << 20));
}

int moi_command_devices(int argc, char **argv) {
  static const moi_command command = {"devices", "the backends and devices of this machine, and what is missing", NULL,
                                      NULL};
  int n_positional, status = moi_options_parse(&command, NULL, 0, argc, argv, &n_positional);
  if (status >= 0) return status;
  for (int b = 0; b < MOI_BACKEND_COUNT; b++) {
    const char *name = moi_backend_name((moi_backend)b);
    uint32_t count = 0;
    moi_status found = moi_device_count((moi_backend)b, &count);
    if (found || !count) {
      printf("%s: none: %s\n", name, found ? moi_last_error() : "no device");
      continue;
    }
    for (uint32_t i = 0; i < count; i++) {
      moi_device_info info = MOI_DEVICE_INFO_INIT;
      if (moi_device_get((moi_backend)b, i, &info)) {
        printf("%s:%u: %s\n", name, i, moi_last_error());
        continue;
      }
      printf("%s:%u %s\n  %-9s %s\n", name, i, info.name, b == MOI_BACKEND_CPU ? "isa" : "driver", info.driver);
      if (info.features[0]) printf("  %-9s %s\n", "features", info.features);
      if (info.n_workers) printf("  %-9s %u\n", "workers", info.n_workers);
      print_size("memory", info.memory);
      print_size("cache", info.cache);
      print_use((moi_backend)b, i);
    }
  }
  return 0;
}
