// The consumer of ../consumer.c as a C++17 engine would write it: owners, and an error that throws.
#include <moiety.h>

#include <cmath>
#include <cstdio>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

static void check(moi_status status) {
  if (status != MOI_OK) throw std::runtime_error(moi_last_error());
}

template <class T> static moi_buffer view(const std::vector<T> &v) { return moi_ptr(v.data(), v.size() * sizeof(T)); }

int main() try {
  const uint32_t width = 32;
  moi_context_desc context_desc = MOI_CONTEXT_DESC_INIT;
  moi_context *raw_context = nullptr;
  check(moi_context_create(&context_desc, &raw_context));
  std::unique_ptr<moi_context, decltype(&moi_context_destroy)> context(raw_context, moi_context_destroy);

  moi_experts_desc desc = MOI_EXPERTS_DESC_INIT;
  desc.max_tokens = desc.top_k = 1;
  desc.hidden = desc.intermediate = width;
  desc.n_experts = 2;
  desc.format = MOI_FORMAT_F32;
  moi_plan *raw_plan = nullptr;
  check(moi_experts_plan(context.get(), &desc, &raw_plan));
  std::unique_ptr<moi_plan, decltype(&moi_plan_destroy)> plan(raw_plan, moi_plan_destroy);

  const std::vector<float> matrix(2 * width * width, 1.0f / width), x(width, 1.0f), weights(1, 1.0f);
  const std::vector<int32_t> ids(1, 1);
  std::vector<float> y(width);
  size_t align = 0;
  const size_t size = moi_plan_workspace(plan.get(), &align);
  const auto drop = [align](void *p) { ::operator delete(p, std::align_val_t(align)); };
  std::unique_ptr<void, decltype(drop)> workspace(::operator new(size + 1, std::align_val_t(align)), drop);

  moi_weights w = MOI_WEIGHTS_INIT;
  w.data = view(matrix);
  moi_experts_args args = MOI_EXPERTS_ARGS_INIT;
  args.n_tokens = 1;
  args.input = view(x);
  args.ids = view(ids);
  args.weights = view(weights);
  args.output = view(y);
  args.gate = args.up = args.down = &w;
  check(moi_experts_run(plan.get(), &args, moi_ptr(workspace.get(), size), moi_queue{}));

  for (float value : y)
    if (!(std::fabs(value - 0.731058579f) < 1e-5f)) throw std::runtime_error("wrong result " + std::to_string(value));
  std::printf("y = %.7f\n", static_cast<double>(y[0]));
} catch (const std::exception &error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
