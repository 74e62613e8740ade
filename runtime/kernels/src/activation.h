// What a linear layer does to its sums last.
#pragma once

namespace piston {

enum Activation { kLinear, kGelu, kGeluTanh, kSilu, kRelu };

}  // namespace piston
