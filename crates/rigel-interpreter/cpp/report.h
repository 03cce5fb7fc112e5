// Reports of failed checks.
#pragma once
#include <string>
#include <vector>

#include "grid.h"
#include "site.h"

namespace interpreter {

// Ends the running launch with a report. `problem` names the check and what was found; the running thread and its
// source line are added, then each of `notes` on a line of its own.
[[noreturn]] void fail(Site site, const std::string& problem, const std::vector<std::string>& notes = {});
// The same from outside a kernel (a copy, a deadlock): only keeps the report and writes it to stderr.
void report(const std::string& text);

extern std::vector<std::string> reports;

std::string describe(const Thread& thread);  // "thread (3,0,0) of block (1,0,0) of norm_layer_bf16 (work 4)"
std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace interpreter
