// Which instructions this processor has, and how many of its cores this process may use.
#pragma once

namespace piston {

enum Level : int { kUnsupported = 0, kVnni = 1, kBfloat16 = 2, kAmx = 3 };  // each with all before it

Level level();                  // the best this machine has, or what set_level made it
Level set_level(Level wanted);  // for tests: never above what the machine has
int num_cores();

}  // namespace piston
