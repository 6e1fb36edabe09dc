#define MOI_SELECT moi_select_f32
#include "cpu/kernels/select.h"
