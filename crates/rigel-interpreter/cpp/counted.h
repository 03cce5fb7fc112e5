// A counted reference for objects that live on one operating-system thread: the interpreter runs under one lock, so the
// counts need no atomic instructions.
#pragma once
#include <cstdint>
#include <utility>

namespace interpreter {

struct Counted {
    mutable uint32_t references = 0;
    Counted() = default;
    Counted(const Counted&) {}  // a copy is a new object that no one refers to yet
    Counted& operator=(const Counted&) { return *this; }
};

template <class T>
class Ref {
  public:
    Ref() = default;
    explicit Ref(T* object) : object_(object) { take(); }
    Ref(const Ref& other) : object_(other.object_) { take(); }
    Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
    Ref& operator=(Ref other) noexcept {
        std::swap(object_, other.object_);
        return *this;
    }
    ~Ref() { drop(); }
    T* get() const { return object_; }
    T* operator->() const { return object_; }
    T& operator*() const { return *object_; }
    explicit operator bool() const { return object_ != nullptr; }

  private:
    void take() {
        if (object_) object_->references++;
    }
    void drop() {
        if (object_ && --object_->references == 0) delete object_;
    }
    T* object_ = nullptr;
};

}  // namespace interpreter
