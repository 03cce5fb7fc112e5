#include "report.h"

#include <cstdarg>
#include <cstdio>

#include "scheduler.h"
#include "work.h"

namespace interpreter {

std::vector<std::string> reports;

std::string text(const char* format, ...) {
    char buffer[1000];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(buffer, sizeof buffer, format, arguments);
    va_end(arguments);
    return buffer;
}

std::string describe(const Thread& thread) {
    return history.describe_agent(thread.warp->block->first + Agents::thread(thread.index));
}

void report(const std::string& message) {
    std::fprintf(stderr, "rigel interpreter: %s\n", message.c_str());
    reports.push_back(message);
}

void fail(Site site, const std::string& problem, const std::vector<std::string>& notes) {
    std::string message = problem + "\n  " + describe(*current) + at_line(site);
    for (const std::string& note : notes) message += "\n  " + note;
    report(message);
    scheduler.abandon();
}

}  // namespace interpreter
