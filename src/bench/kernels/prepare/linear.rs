//! Products with weight matrices.

use crate::backend::cuda::kernels::gemv_normed::{Matrix, NormedGemv, NormedRows};
use crate::backend::cuda::kernels::linear::{
    Epilogue, GemmShape, Head, LinearInputs, Projection, QkvOutputs, QkvProjection, QkvRows, QkvShape,
};
use crate::backend::cuda::kernels::norm::{NormShape, NormVariant, NormWeights};
use crate::backend::cuda::kernels::{BiasTerm, Element};
use crate::backend::cuda::{Buffer, CudaError, Stream};

use super::super::timer::Launches;
use super::{Filler, set_of, spread};

/// What every product reads.
struct Operands<T> {
    x: Buffer<T>,
    weights: Buffer<T>,
    bias: Option<Buffer<T>>,
}

impl<T: Element> Operands<T> {
    fn new(filler: &Filler<T>, set: usize, shape: GemmShape, bias: BiasTerm) -> Result<Operands<T>, CudaError> {
        let GemmShape { m: rows, n: columns, k: depth } = shape;
        let bias = match bias {
            BiasTerm::Present => Some(filler.filled(columns, set, 2, 0.0, spread::BIASES)?),
            BiasTerm::Absent => None,
        };
        Ok(Operands {
            x: filler.activations(rows * depth, set, 0)?,
            weights: filler.filled(columns * depth, set, 1, 0.0, spread::WEIGHTS)?,
            bias,
        })
    }

    fn inputs(&self) -> LinearInputs<'_, T> {
        LinearInputs {
            x: self.x.view(),
            weights: self.weights.view().into(),
            bias: self.bias.as_ref().map(Buffer::view),
        }
    }
}

/// A matrix of a layer.
pub struct Layer<T> {
    kernels: Projection<T>,
    shape: GemmShape,
    sets: Vec<(Operands<T>, Buffer<T>)>,
}

impl<T: Element> Layer<T> {
    pub fn new(
        filler: &Filler<T>,
        epilogue: Epilogue,
        shape: GemmShape,
        bias: BiasTerm,
        sets: usize,
    ) -> Result<Layer<T>, CudaError> {
        let set = |set| {
            // What an epilogue adds to; others overwrite it.
            let out = filler.activations(shape.m * shape.n, set, 3)?;
            Ok((Operands::new(filler, set, shape, bias)?, out))
        };
        Ok(Layer {
            kernels: Projection::load(filler.stream.device(), epilogue)?,
            shape,
            sets: (0..sets).map(set).collect::<Result<_, CudaError>>()?,
        })
    }
}

impl<T: Element> Launches for Layer<T> {
    fn sets(&self) -> usize {
        self.sets.len()
    }

    fn launch(&mut self, stream: &Stream, set: usize) -> Result<(), CudaError> {
        let Some((operands, out)) = set_of(&mut self.sets, set) else { return Ok(()) };
        self.kernels.launch(stream, self.shape, operands.inputs(), out.view_mut())
    }
}

/// The MLP's way in, of rows that it normalises itself.
pub struct Normed<T> {
    kernels: NormedGemv<T>,
    norm: NormShape,
    shape: GemmShape,
    weights: Buffer<T>,
    biases: Buffer<T>,
    sets: Vec<(Operands<T>, Buffer<T>)>,
}

impl<T: Element> Normed<T> {
    pub fn new(
        filler: &Filler<T>,
        norm: NormShape,
        variant: NormVariant,
        (shape, bias): (GemmShape, BiasTerm),
        sets: usize,
    ) -> Result<Normed<T>, CudaError> {
        let set = |set| {
            let out = filler.stream.zeroed(shape.m * shape.n)?;
            Ok((Operands::new(filler, set, shape, bias)?, out))
        };
        Ok(Normed {
            kernels: NormedGemv::load(filler.stream.device(), variant)?,
            norm,
            shape,
            weights: filler.filled(norm.pitch(), 0, 4, 1.0, 0.1)?,
            biases: filler.filled(norm.pitch(), 0, 5, 0.0, spread::BIASES)?,
            sets: (0..sets).map(set).collect::<Result<_, CudaError>>()?,
        })
    }
}

impl<T: Element> Launches for Normed<T> {
    fn sets(&self) -> usize {
        self.sets.len()
    }

    fn launch(&mut self, stream: &Stream, set: usize) -> Result<(), CudaError> {
        let Some((Operands { x, weights, bias }, out)) = set_of(&mut self.sets, set) else { return Ok(()) };
        let rows = NormedRows {
            hidden: x.view(),
            gather: None,
            norm: NormWeights { weight: self.weights.view(), bias: Some(self.biases.view()) },
            width: self.norm.width,
            epsilon: self.norm.epsilon,
        };
        let matrix = Matrix { weights: weights.view().into(), bias: bias.as_ref().map(Buffer::view) };
        // SAFETY: nothing is gathered.
        unsafe { self.kernels.gelu(stream, self.shape, rows, matrix, out.view_mut()) }
    }
}

/// The head.
pub struct Logits<T> {
    kernels: Head<T>,
    shape: GemmShape,
    sets: Vec<(Operands<T>, Buffer<f32>)>,
}

impl<T: Element> Logits<T> {
    pub fn new(filler: &Filler<T>, shape: GemmShape, sets: usize) -> Result<Logits<T>, CudaError> {
        let set = |set| {
            let out = filler.stream.zeroed::<f32>(shape.m * shape.n)?;
            Ok((Operands::new(filler, set, shape, BiasTerm::Absent)?, out))
        };
        let kernels = Head::load(filler.stream.device())?;
        Ok(Logits { kernels, shape, sets: (0..sets).map(set).collect::<Result<_, CudaError>>()? })
    }
}

impl<T: Element> Launches for Logits<T> {
    fn sets(&self) -> usize {
        self.sets.len()
    }

    fn launch(&mut self, stream: &Stream, set: usize) -> Result<(), CudaError> {
        let Some((operands, out)) = set_of(&mut self.sets, set) else { return Ok(()) };
        self.kernels.launch(stream, self.shape, operands.x.view(), operands.weights.view().into(), out.view_mut())
    }
}

/// Queries, keys and values: each row the next position of a sequence of its own.
pub struct Qkv<T> {
    kernels: QkvProjection<T>,
    shape: QkvShape,
    positions: Buffer<u32>,
    row_pages: Buffer<u32>,
    rotations: Buffer<f32>,
    sets: Vec<QkvSet<T>>,
}

struct QkvSet<T> {
    operands: Operands<T>,
    queries: Buffer<T>,
    keys: Buffer<T>,
    values: Buffer<T>,
}

impl<T: Element> Qkv<T> {
    pub fn new(filler: &Filler<T>, shape: QkvShape, bias: BiasTerm, sets: usize) -> Result<Qkv<T>, CudaError> {
        let QkvShape { rows, heads, kv_heads, head_dim, page_size, .. } = shape;
        let stream = &filler.stream;
        let product = shape.gemm_shape();
        let cache = rows * kv_heads * page_size * head_dim;
        let set = |set| {
            Ok(QkvSet {
                operands: Operands::new(filler, set, product, bias)?,
                queries: stream.zeroed(rows * heads * head_dim)?,
                keys: stream.alloc(cache)?,
                values: stream.alloc(cache)?,
            })
        };
        // Angles of a turn in 64 steps: what they are does not matter to the time.
        let positions: Vec<u32> = (0..rows as u32).map(|row| row % 64).collect();
        let turn = |index: usize| (index / head_dim * (index % head_dim / 2)) as f32 * 0.1;
        let rotation = |index: usize| if index.is_multiple_of(2) { turn(index).cos() } else { turn(index).sin() };
        let rotations: Vec<f32> = (0..64 * head_dim).map(rotation).collect();
        Ok(Qkv {
            kernels: QkvProjection::load(stream.device())?,
            shape,
            positions: stream.upload(&positions)?,
            row_pages: stream.upload(&(0..rows as u32).collect::<Vec<_>>())?,
            rotations: stream.upload(&rotations)?,
            sets: (0..sets).map(set).collect::<Result<_, CudaError>>()?,
        })
    }
}

impl<T: Element> Launches for Qkv<T> {
    fn sets(&self) -> usize {
        self.sets.len()
    }

    fn launch(&mut self, stream: &Stream, set: usize) -> Result<(), CudaError> {
        let Some(QkvSet { operands, queries, keys, values }) = set_of(&mut self.sets, set) else { return Ok(()) };
        let (positions, row_pages) = (self.positions.view(), self.row_pages.view());
        let rows = QkvRows { positions, row_pages, rotations: self.rotations.view() };
        let out = QkvOutputs { queries: queries.view_mut(), keys: keys.view_mut(), values: values.view_mut() };
        self.kernels.launch(stream, self.shape, operands.inputs(), rows, out)
    }
}
