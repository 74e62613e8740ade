// Which instructions this processor has, and how many of its cores this process may use.
#pragma once

namespace piston {

enum Level : int { kUnsupported = 0, kVnni = 1, kAmx = 2 };

Level level();                  // the best this machine has, or what set_level made it
Level set_level(Level wanted);  // for tests: never above what the machine has
bool has_bfloat16();  // whether products of bfloat16 have instructions, at a level of more than VNNI
int num_cores();

}  // namespace piston
