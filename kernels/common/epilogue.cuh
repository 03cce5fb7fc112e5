// What happens to an element of a matrix product between its f32 sum and its one rounding. Each epilogue is a type that
// a GEMM or GEMV takes as a parameter:
//
//   Terms                     what it adds, read ahead of the main loop so that the end does not wait for memory
//   read(output, row, col)    reads them
//   apply(sum, terms)         the value to round and store
#pragma once
#include "common/dtypes.cuh"

// Where a product goes: `data` is [rows, columns]; `bias` has one element a column, null for none.
template <class T>
struct Output {
    const T* bias;
    T* data;
    uint32_t columns;
};

template <class T>
DEVICE float bias_at(const Output<T>& output, uint32_t column) {
    return output.bias == nullptr ? 0.0f : to_f32(output.bias[column]);
}

template <class T>
DEVICE T* element_at(const Output<T>& output, uint32_t row, uint32_t column) {
    return output.data + static_cast<size_t>(row) * output.columns + column;
}

// sum + bias
struct Bias {
    struct Terms {
        float bias;
    };
    template <class T>
    DEVICE Terms read(const Output<T>& output, uint32_t, uint32_t column) {
        return Terms{bias_at(output, column)};
    }
    DEVICE float apply(float sum, const Terms& terms) { return sum + terms.bias; }
};

// gelu(sum + bias), the tanh form: gelu(x) = x / 2 (1 + tanh u) with u = sqrt(2 / pi) (x + 0.044715 x^3), which is
// x / (1 + exp(-2 u)).
struct BiasGelu {
    using Terms = Bias::Terms;
    template <class T>
    DEVICE Terms read(const Output<T>& output, uint32_t row, uint32_t column) {
        return Bias::read(output, row, column);
    }
    DEVICE float apply(float sum, const Terms& terms) {
        constexpr float kFactor = -2.302208198f;  // -2 sqrt(2 / pi) / ln(2)
        const float x = sum + terms.bias;
        return x * reciprocal_approx(1.0f + exp2_approx(kFactor * (x + 0.044715f * x * x * x)));
    }
};

// sum + bias + what the output held: the residual stream, updated in place. Each element is read and written by one
// thread.
struct BiasResidual {
    struct Terms {
        float bias;
        float residual;
    };
    template <class T>
    DEVICE Terms read(const Output<T>& output, uint32_t row, uint32_t column) {
        return Terms{bias_at(output, column), to_f32(*element_at(output, row, column))};
    }
    DEVICE float apply(float sum, const Terms& terms) { return sum + terms.bias + terms.residual; }
};
