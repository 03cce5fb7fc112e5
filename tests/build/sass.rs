//! What the compiler made of the kernels: ptxas's report (registers, spills, warnings) and the machine code itself
//! (which MMA instructions and how many in the main loop, how wide the loads are, no local memory). Needs no GPU,
//! but nvcc and cuobjdump: tools/install-nvcc fetches both.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rigel::backend::cuda::{Image, images};

/// The images of this build, or a line that says which test is skipped.
fn compiled(test: &str) -> &'static [Image] {
    if images().is_empty() {
        eprintln!("{test}: skipped, this build has no kernels; run tools/install-nvcc and build again");
    }
    images()
}

/// cuobjdump of the wheels in .cuda, or of a toolkit.
fn cuobjdump() -> Option<PathBuf> {
    let wheels = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cuda/lib");
    let pythons = fs::read_dir(wheels).into_iter().flatten().flatten();
    let wheels = pythons.map(|python| python.path().join("site-packages/nvidia/cu13/bin"));
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(|home| Path::new(&home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = wheels.chain(homes).chain(env::split_paths(&path)).chain(["/usr/local/cuda/bin".into()]);
    folders.map(|folder| folder.join("cuobjdump")).find(|tool| tool.is_file())
}

fn built(image: &Image, extension: &str) -> PathBuf {
    Path::new(env!("OUT_DIR")).join(image.name).with_extension(extension)
}

#[derive(Debug)]
struct Instruction {
    address: u64,
    /// Operation with its suffixes, such as `LDG.E.128.CONSTANT`.
    operation: String,
    /// Where it jumps to, for a branch.
    target: Option<u64>,
}

/// Machine code of each kernel, by (architecture, kernel).
type Listing = BTreeMap<(String, String), Vec<Instruction>>;

fn disassemble(tool: &Path, image: &Image) -> Listing {
    let output = Command::new(tool).arg("-sass").arg(built(image, "fatbin")).output().unwrap();
    assert!(output.status.success(), "cuobjdump: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut listing = Listing::new();
    let (mut architecture, mut kernel) = (String::new(), String::new());
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("arch = ") {
            architecture = name.to_owned();
        } else if let Some(name) = line.strip_prefix("Function : ") {
            kernel = name.to_owned();
        } else if let Some(instruction) = instruction(line) {
            listing.entry((architecture.clone(), kernel.clone())).or_default().push(instruction);
        }
    }
    listing
}

/// `/*0370*/  @!P0 LDG.E.128 R44, desc[UR6][R6.64] ;  /* 0x… */`
fn instruction(line: &str) -> Option<Instruction> {
    let (address, rest) = line.strip_prefix("/*")?.split_once("*/")?;
    let address = u64::from_str_radix(address, 16).ok()?;
    let text = rest.split(';').next()?.trim();
    let mut words = text.split_whitespace().skip_while(|word| word.starts_with('@'));
    let operation = words.next()?.to_owned();
    let target = words.last().filter(|_| operation == "BRA").and_then(|word| word.strip_prefix("0x"));
    Some(Instruction { address, operation, target: target.and_then(|hex| u64::from_str_radix(hex, 16).ok()) })
}

fn count(code: &[Instruction], prefix: &str) -> usize {
    code.iter().filter(|instruction| instruction.operation.starts_with(prefix)).count()
}

/// The innermost backward branch around a warp's MMA instructions, and all that it repeats.
fn main_loop<'a>(code: &'a [Instruction], place: &str) -> &'a [Instruction] {
    loop_around(code, "HMMA", place)
}

/// The innermost backward branch around an operation.
fn loop_around<'a>(code: &'a [Instruction], operation: &str, place: &str) -> &'a [Instruction] {
    let at = |address| code.partition_point(|instruction| instruction.address < address);
    let back = code.iter().filter_map(|branch| Some((branch.target?, branch.address)));
    back.filter(|(start, end)| start < end)
        .map(|(start, end)| &code[at(start)..=at(end)])
        .filter(|body| count(body, operation) > 0)
        .min_by_key(|body| body.len())
        .unwrap_or_else(|| panic!("{place} has no main loop"))
}

/// Every listing of every image of this build, made once for all tests; none where that cannot be had.
fn listings(test: &str) -> &'static Listing {
    static ALL: OnceLock<Listing> = OnceLock::new();
    let images = compiled(test);
    let Some(tool) = cuobjdump() else {
        // CI sets it: there a check that is skipped is no check.
        assert!(env::var_os("RIGEL_REQUIRE_NVCC").is_none(), "there is no cuobjdump; run tools/install-nvcc");
        eprintln!("{test}: skipped, there is no cuobjdump; run tools/install-nvcc");
        return ALL.get_or_init(Listing::new);
    };
    ALL.get_or_init(|| images.iter().flat_map(|image| disassemble(&tool, image)).collect())
}

/// Bytes of all images of a build, compressed or not.
const MAX_BYTES: u64 = 24 << 20;

/// Prints what each file costs; the time, which is that of the machine that compiled it, is only printed.
#[test]
fn the_images_stay_small() {
    let images = compiled("the_images_stay_small");
    let (mut kernels, mut seconds, mut bytes) = (0, 0.0, 0);
    for image in images {
        let report = fs::read_to_string(built(image, "ptxas")).unwrap();
        let entries = report.lines().filter(|line| line.contains("Compiling entry function")).count();
        // Phases of each target, the last columns of which are the time and `ms`.
        let time = fs::read_to_string(built(image, "time")).unwrap();
        let phases =
            time.lines().filter_map(|line| line.strip_suffix(" , ms")?.rsplit(" , ").next()?.parse::<f64>().ok());
        let own_seconds = phases.sum::<f64>() / 1e3;
        assert!(entries > 0 && own_seconds > 0.0, "{}: {report}\n{time}", image.name);
        println!("{:24} {entries:4} kernels {own_seconds:6.1} s {:9} bytes", image.name, image.fatbin.len());
        (kernels, seconds, bytes) = (kernels + entries, seconds + own_seconds, bytes + image.fatbin.len() as u64);
    }
    println!("{:24} {kernels:4} kernels {seconds:6.1} s {bytes:9} bytes", "all");
    assert!(bytes <= MAX_BYTES, "{bytes} bytes of kernels, at most {MAX_BYTES} were planned for");
}

#[test]
fn no_kernel_touches_local_memory() {
    for ((architecture, kernel), code) in listings("no_kernel_touches_local_memory") {
        assert!(code.len() > 10, "{kernel} for {architecture}: {} instructions were read", code.len());
        for operation in ["LDL", "STL"] {
            assert_eq!(count(code, operation), 0, "{kernel} for {architecture} uses {operation}");
        }
    }
}

/// Of (prefix of the kernel's name, its tile): MMA instructions in the main loop and loads of weights in all, those
/// ahead of the loop and those in it. 2 instructions for each 32 k, 16 columns and 8 rows; 8 loads a turn.
const GEMV_LOOPS: [(&str, usize, usize); 3] = [("_8x16", 8, 16), ("_8x32", 8, 16), ("_16x32", 16, 16)];

#[test]
fn no_wait_traps_unless_the_build_says_so() {
    let listings = listings("no_wait_traps_unless_the_build_says_so");
    let traps = rigel::backend::cuda::mbarrier_trap_seconds().is_some();
    let mut waits = 0;
    for ((architecture, kernel), code) in listings {
        // SYNCS.PHASECHK is a try at an mbarrier, BPT.TRAP a trap.
        let (tries, found) = (count(code, "SYNCS.PHASECHK"), count(code, "BPT.TRAP"));
        waits += tries;
        assert_eq!(found > 0, traps && tries > 0, "{architecture} {kernel}: {tries} waits, {found} traps");
    }
    assert!(listings.is_empty() || waits > 50, "{waits} waits at mbarriers in all kernels");
}

#[test]
fn gemv_multiplies_on_tensor_cores_and_asks_for_weights_16_bytes_at_a_time() {
    for ((architecture, kernel), code) in listings("gemv_multiplies_on_tensor_cores…") {
        if !kernel.starts_with("gemv_") || kernel.starts_with("gemv_normed_") {
            continue;
        }
        let place = format!("{kernel} for {architecture}");
        let (_, multiplications, loads) = GEMV_LOOPS.iter().find(|(tile, ..)| kernel.ends_with(tile)).unwrap();
        let exact = if kernel.contains("_bf16_") { "HMMA.16816.F32.BF16" } else { "HMMA.16816.F32" };
        let body = main_loop(code, &place);
        let in_loop = body.iter().filter(|i| i.operation == exact).count();
        assert_eq!(in_loop, *multiplications, "{place}: {exact} in the main loop");
        assert_eq!(count(code, "HMMA"), *multiplications, "{place}: MMA instructions in all");
        assert_eq!(count(code, "LDG.E.NA.128.CONSTANT"), *loads, "{place}: loads of weights");
        // The rest are activations, 16 bytes too, and the terms of the epilogue for two columns: bias, residual,
        // position and page of 4 bytes, cosine and sine of 8. None is left for behind the main loop.
        let wide = code.iter().filter(|i| i.operation.starts_with("LDG") && i.operation.contains(".128")).count();
        let terms = epilogue(kernel).terms;
        assert_eq!(count(code, "LDG"), wide + terms, "{place}: loads that are neither 16 bytes nor an epilogue's");
        let behind = code.iter().filter(|i| i.address > body[body.len() - 1].address);
        assert_eq!(behind.filter(|i| i.operation.starts_with("LDG")).count(), 0, "{place}: loads behind the main loop");
        let store = if kernel.contains("_logits_") { "STG.E.64" } else { "STG.E" };
        let stores: Vec<&str> = code.iter().map(|i| i.operation.as_str()).filter(|it| it.starts_with("STG")).collect();
        assert_eq!(stores, [store], "{place}: one store of two columns");
        if architecture == "sm_90" {
            let wait = code.iter().position(|i| i.operation == "ACQBULK").expect("griddepcontrol.wait");
            let ahead = count(&code[..wait], "LDG.E.NA.128.CONSTANT");
            assert_eq!(ahead, 8, "{place}: loads of weights before griddepcontrol.wait");
            assert!(only_constants(&code[..wait]), "{place}: more than weights is read before griddepcontrol.wait");
        }
    }
}

#[test]
fn gemv_normed_asks_for_weights_before_the_rows_and_reads_those_from_shared_memory() {
    for ((architecture, kernel), code) in listings("gemv_normed_asks_for_weights…") {
        if !kernel.starts_with("gemv_normed_") {
            continue;
        }
        let place = format!("{kernel} for {architecture}");
        let body = main_loop(code, &place);
        assert_eq!((count(body, "HMMA"), count(code, "HMMA")), (8, 8), "{place}: MMA instructions");
        assert_eq!(count(body, "LDG"), count(body, "LDG.E.NA.128.CONSTANT"), "{place}: weights alone come from memory");
        assert_eq!(count(code, "LDG.E.NA.128.CONSTANT"), 16, "{place}: loads of weights");
        assert!(count(body, "LDS.128") >= 4, "{place}: activations come from shared memory");
        assert_eq!(count(code, "LD.E"), 0, "{place}: accesses of unknown memory");
        if architecture == "sm_90" {
            let wait = code.iter().position(|i| i.operation == "ACQBULK").expect("griddepcontrol.wait");
            let ahead = count(&code[..wait], "LDG.E.NA.128.CONSTANT");
            assert_eq!(ahead, 8, "{place}: loads of weights before griddepcontrol.wait");
            assert!(only_constants(&code[..wait]), "{place}: more than weights is read before griddepcontrol.wait");
        }
    }
}

/// Whether all loads are of what no kernel writes.
fn only_constants(code: &[Instruction]) -> bool {
    code.iter().filter(|i| i.operation.starts_with("LDG.")).all(|i| i.operation.ends_with(".CONSTANT"))
}

/// What an epilogue loads: for two columns of a row in gemv, and in gemm for each row and column of a lane's tile.
struct Loads {
    /// Of one pair of columns, in all.
    terms: usize,
    /// Of a row, 4 bytes each: position and page.
    of_row: usize,
    /// Of a pair, 8 bytes each: cosine and sine.
    of_pair: usize,
    /// Of a column pair, 4 bytes: bias.
    of_columns: usize,
    /// Of 8 columns, 16 bytes: what is added to.
    of_eight: usize,
}

fn epilogue(kernel: &str) -> Loads {
    let none = Loads { terms: 0, of_row: 0, of_pair: 0, of_columns: 0, of_eight: 0 };
    match kernel {
        name if name.contains("_logits_") => none,
        name if name.contains("_rope_kv_") => Loads { terms: 4, of_row: 2, of_pair: 1, of_columns: 1, ..none },
        name if name.contains("_residual_") => Loads { terms: 2, of_columns: 1, of_eight: 1, ..none },
        _ => Loads { terms: 1, of_columns: 1, ..none },
    }
}

/// Of a tile: MMA instructions, ldmatrix and cp.async of a turn of the main loop; rows and pairs of columns that a
/// lane ends with.
const GEMM_TILES: [(&str, [usize; 3], usize, usize); 4] = [
    ("_128x256", [128, 32, 12], 8, 8),
    ("_128x128", [64, 16, 8], 8, 8),
    ("_64x64", [32, 16, 8], 4, 4),
    ("_32x64", [16, 12, 6], 2, 4),
];

#[test]
fn gemm_multiplies_from_a_ring_of_asynchronous_copies_and_stores_16_bytes_at_a_time() {
    for ((architecture, kernel), code) in listings("gemm_multiplies_from_a_ring…") {
        if !kernel.starts_with("gemm_") || ["gemm_sm90_", "gemm_small_m_"].iter().any(|other| kernel.starts_with(other))
        {
            continue;
        }
        let place = format!("{kernel} for {architecture}");
        let (_, in_turn, rows, pairs) = GEMM_TILES.iter().find(|(tile, ..)| kernel.ends_with(tile)).unwrap();
        let exact = if kernel.contains("_bf16_") { "HMMA.16816.F32.BF16" } else { "HMMA.16816.F32" };
        let body = main_loop(code, &place);
        let in_loop = |operation: &str| body.iter().filter(|i| i.operation.starts_with(operation)).count();
        let found = [exact, "LDSM.16.M88.4", "LDGSTS.E.BYPASS.LTC128B.128"].map(in_loop);
        assert_eq!(found, *in_turn, "{place}: HMMA, LDSM, LDGSTS in the main loop");
        assert_eq!(count(code, "HMMA"), in_turn[0], "{place}: MMA instructions in all");
        assert_eq!(in_loop("BAR"), 1, "{place}: barriers in the main loop");
        assert_eq!(in_loop("LDG.") + in_loop("STG"), 0, "{place}: other accesses in the main loop");
        // An HMMA occupies its tensor core for 8 cycles and two warps share it: there are 3 issue slots beside each.
        // The small tiles wait for memory.
        let others = body.len() - in_turn[0];
        if in_turn[0] >= 64 {
            assert!(others <= 2 * in_turn[0], "{place}: {others} instructions beside {} HMMA", in_turn[0]);
        }

        let Loads { of_row, of_pair, of_columns, of_eight, .. } = epilogue(kernel);
        let eights = rows * pairs / 4;
        let loads = rows * (of_row + pairs * of_pair) + pairs * of_columns + eights * of_eight;
        assert_eq!(count(code, "LDG."), loads, "{place}: loads of the epilogue");
        let (store, stores) =
            if kernel.contains("_logits_") { ("STG.E.64", rows * pairs) } else { ("STG.E.128", eights) };
        assert_eq!((count(code, store), count(code, "STG")), (stores, stores), "{place}: stores");
        if architecture == "sm_90" {
            let wait = code.iter().position(|i| i.operation == "ACQBULK").expect("griddepcontrol.wait");
            assert!(count(&code[..wait], "LDGSTS") > 0, "{place}: weights are asked for before griddepcontrol.wait");
            assert!(only_constants(&code[..wait]), "{place}: more than weights is read before griddepcontrol.wait");
        }
    }
}

#[test]
fn small_m_multiplies_by_warpgroups_what_the_copy_engine_brings() {
    for ((architecture, kernel), code) in listings("gemm_small_m_multiplies_by_warpgroups…") {
        if !kernel.starts_with("gemm_small_m_") {
            continue;
        }
        let place = format!("{kernel} for {architecture}");
        let rows = kernel.rsplit('_').next().and_then(|rows| rows.parse::<usize>().ok()).expect("its rows");
        let element = if kernel.contains("_bf16_") { ".BF16" } else { "" };
        let exact = format!("HGMMA.64x{rows}x16.F32{element}");
        let body = loop_around(code, "HGMMA", &place);
        // 64 k of a stage, 16 an instruction; waited for once, and the stage is given back without a fence.
        assert_eq!(body.iter().filter(|i| i.operation == exact).count(), 4, "{place}: {exact} in the main loop");
        assert_eq!(count(code, "HGMMA"), 4, "{place}: MMA instructions in all");
        assert_eq!(count(code, "HMMA"), 0, "{place}: MMA instructions of a warp");
        let waits = ["WARPGROUP.DEPBAR", "SYNCS.PHASECHK", "SYNCS.ARRIVE"].map(|operation| count(body, operation));
        assert_eq!(waits, [1, 1, 1], "{place}: waits for products and stages, and arrivals, in the main loop");
        for operation in ["MEMBAR", "BAR", "LD", "ST"] {
            assert_eq!(count(body, operation), 0, "{place}: {operation} in the main loop");
        }
        assert!(body.len() <= 100, "{place}: {} instructions in the main loop", body.len());

        // Weights of the first round and of the others, and activations into all blocks side by side.
        assert_eq!(count(code, "UTMALDG.2D"), 4, "{place}: copies");
        assert_eq!(count(code, "UTMALDG.2D.MULTICAST"), 1, "{place}: copies of activations into two blocks");
        let wait = code.iter().position(|i| i.operation == "ACQBULK").expect("griddepcontrol.wait");
        assert_eq!(count(&code[..wait], "UTMALDG.2D"), 1, "{place}: weights are asked for before griddepcontrol.wait");
        assert_eq!(count(&code[..wait], "UTMALDG.2D.MULTICAST"), 0, "{place}: and no activations");
        assert!(only_constants(&code[..wait]), "{place}: more than weights is read before griddepcontrol.wait");
        assert_eq!(count(code, "PREEXIT"), 1, "{place}: griddepcontrol.launch_dependents");

        // Two warpgroups have 64 rows of weights each, a lane half as many sums as the batch has rows. Four rows are
        // finished at a time, two columns a lane.
        assert_eq!(count(code, "STS"), rows / 2, "{place}: sums laid into shared memory");
        let store = if kernel.contains("_logits_") { "STG.E.64" } else { "STG.E" };
        let stores: Vec<&str> = code.iter().map(|i| i.operation.as_str()).filter(|it| it.starts_with("STG")).collect();
        assert_eq!(stores, [store; 4], "{place}: stores of two columns");
    }
}

#[test]
fn gemm_for_hopper_multiplies_by_warpgroups_and_leaves_copies_to_the_copy_engine() {
    for ((architecture, kernel), code) in listings("gemm_for_hopper_multiplies…") {
        let Some((_, tile)) = kernel.strip_prefix("gemm_sm90_").and_then(|name| name.rsplit_once("_128x")) else {
            continue;
        };
        let place = format!("{kernel} for {architecture}");
        let columns: usize = tile.parse().expect("a number of columns");
        let element = if kernel.contains("_bf16_") { ".BF16" } else { "" };
        let exact = format!("HGMMA.64x{columns}x16.F32{element}");
        // 64 of k a turn, the last of which ends a group; one group is left under way.
        let body = loop_around(code, "HGMMA", &place);
        let in_loop = body.iter().filter(|i| i.operation == exact).count();
        assert_eq!((in_loop, count(code, "HGMMA")), (4, 4), "{place}: {exact} in the main loop, and MMA instructions");
        assert_eq!(count(body, "WARPGROUP.DEPBAR"), 1, "{place}: waits for MMA instructions in the main loop");
        // A wait for a stage, and an arrival at one that was read; no fence, no other memory.
        assert_eq!(count(body, "SYNCS"), 2, "{place}: uses of mbarriers in the main loop");
        for operation in ["LD", "ST", "BAR", "MEMBAR", "CCTL", "FENCE", "UTMA"] {
            assert_eq!(count(body, operation), 0, "{place}: {operation} in the main loop");
        }
        // Of two warps that share a tensor core each has columns / 2 cycles for an instruction's turn, four times.
        assert!(body.len() - 4 <= 72, "{place}: {} instructions in the main loop", body.len());

        // Of a plain matrix a lane's columns, in pieces of 64: TMA stores each, and loads those to be added
        // to.
        let is_matrix = !kernel.contains("_rope_kv_") && !kernel.contains("_logits_");
        let (pieces, adds) = (columns / 64, kernel.contains("_residual_"));
        assert_eq!(count(code, "UTMASTG.2D"), if is_matrix { pieces } else { 0 }, "{place}: stores of pieces");
        // Weights before and behind the wait, alone and for a cluster; activations; pieces, all but the first two on
        // the way.
        let loaded_pieces = if adds { pieces } else { 0 };
        assert_eq!(count(code, "UTMALDG.2D"), 5 + loaded_pieces, "{place}: loads by TMA");
        assert_eq!(count(code, "UTMALDG.2D.MULTICAST"), 2, "{place}: loads for a cluster");
        let matrices = if kernel.contains("_logits_") { 0 } else { columns / 16 };
        assert_eq!(count(code, "STSM.16.M88.4"), matrices, "{place}: stmatrix");
        assert_eq!(count(code, "LDSM.16.M88.4"), if adds { matrices } else { 0 }, "{place}: ldmatrix");
        // Else rows of 128 bytes, 16 a lane, 4 rows at a time.
        let rows = match is_matrix {
            true => 0,
            false if kernel.contains("_logits_") => columns / 32 * 4,
            false => pieces * 4,
        };
        assert_eq!((count(code, "STG.E.128"), count(code, "STG")), (rows, rows), "{place}: stores of rows");
        assert_eq!(count(code, "USETMAXREG"), 2, "{place}: registers change hands");
        assert_eq!(count(code, "PREEXIT"), 1, "{place}: griddepcontrol.launch_dependents");
        // Of the two branches of roles the first waits before it reads anything, the other asks for weights.
        let waits: Vec<usize> = (0..code.len()).filter(|at| code[*at].operation == "ACQBULK").collect();
        assert_eq!(waits.len(), 2, "{place}: griddepcontrol.wait of each role");
        for operation in ["LDG", "UTMALDG", "STG", "UTMASTG"] {
            assert_eq!(count(&code[..waits[0]], operation), 0, "{place}: {operation} before griddepcontrol.wait");
        }
        let roles = code.iter().position(|i| i.operation.starts_with("USETMAXREG.DEALLOC")).expect("setmaxnreg.dec");
        assert!(roles > waits[0] && roles < waits[1], "{place}: the filler's branch comes second");
        let ahead = &code[roles..waits[1]];
        assert_eq!(
            (count(ahead, "UTMALDG"), count(ahead, "LDG")),
            (2, 0),
            "{place}: weights before griddepcontrol.wait"
        );
    }
}

#[test]
fn norm_and_embed_move_16_bytes_at_a_time() {
    for ((architecture, kernel), code) in listings("norm_and_embed_move_16_bytes_at_a_time") {
        let place = format!("{kernel} for {architecture}");
        // Numbers of rows: an id, and one that was drawn; a row to gather.
        let numbers = match kernel.as_str() {
            "embed_gather" => 2,
            name if name.starts_with("norm_") => 1,
            _ => continue,
        };
        for operation in ["LDG", "STG"] {
            let wide =
                code.iter().filter(|i| i.operation.starts_with(operation) && i.operation.contains(".128")).count();
            let narrow = if operation == "LDG" { numbers } else { 0 };
            assert!(wide > 0, "{place}: no {operation} of 16 bytes");
            assert_eq!(count(code, operation) - wide, narrow, "{place}: {operation} of less than 16 bytes");
        }
        if architecture == "sm_90" {
            assert_eq!(count(code, "ACQBULK"), 1, "{place}: griddepcontrol.wait");
            assert_eq!(count(code, "PREEXIT"), 1, "{place}: griddepcontrol.launch_dependents");
        }
    }
}

/// Of (kernel, its sizes): in the main loop the MMA instructions, the loads of fragments, the asynchronous copies of
/// a thread and the barriers of a block. A turn of prefill is 64 keys for 32 queries of a warp: 64 x 32 x head_dim
/// multiply-adds twice, 2,048 an instruction; fragments of 16 x 16 keys and values, and for head_dim 128 of queries;
/// the copies of a block of 128 threads, 16 bytes each. A turn of decode is 16 keys for 16 or 32 heads, by one warp.
const ATTENTION_LOOPS: [(&str, &str, [usize; 4]); 10] = [
    ("attention_prefill_", "_64", [128, 32, 8, 2]),
    ("attention_prefill_", "_128", [256, 32 + 32 + 16, 16, 2]),
    ("attention_decode_split_", "_64x16", [16, 8, 8, 0]),
    ("attention_decode_split_", "_64x32", [32, 8, 8, 0]),
    ("attention_decode_split_", "_128x16", [32, 16, 16, 0]),
    ("attention_decode_split_", "_128x32", [64, 16, 16, 0]),
    ("attention_decode_sm90_", "_64x16", [16, 8, 8, 0]),
    ("attention_decode_sm90_", "_64x32", [32, 8, 8, 0]),
    ("attention_decode_sm90_", "_128x16", [32, 16, 16, 0]),
    ("attention_decode_sm90_", "_128x32", [64, 16, 16, 0]),
];

#[test]
fn attention_multiplies_on_tensor_cores_and_copies_past_the_registers() {
    for ((architecture, kernel), code) in listings("attention_multiplies_on_tensor_cores…") {
        let place = format!("{kernel} for {architecture}");
        if kernel.starts_with("attention_") && architecture.starts_with("sm_90") {
            assert_eq!(count(code, "PREEXIT"), 1, "{place}: griddepcontrol.launch_dependents");
            let wait = code.iter().position(|i| i.operation == "ACQBULK").expect("griddepcontrol.wait");
            assert_eq!(
                count(&code[..wait], "LDG") + count(&code[..wait], "LDGSTS"),
                0,
                "{place}: read before the wait"
            );
        }
        if kernel.starts_with("attention_prefill_sm90_") {
            continue;
        }
        let expected =
            ATTENTION_LOOPS.iter().find(|(start, end, _)| kernel.starts_with(start) && kernel.ends_with(end));
        let Some((.., counts)) = expected else { continue };
        let exact = if kernel.contains("_bf16_") { "HMMA.16816.F32.BF16" } else { "HMMA.16816.F32" };
        let body = main_loop(code, &place);
        let found = [exact, "LDSM.16.M", "LDGSTS.E.BYPASS.128", "BAR.SYNC"].map(|operation| count(body, operation));
        assert_eq!(found, *counts, "{place}: MMA instructions, fragments, copies and barriers of the main loop");
        // Outside of the loop fragments of queries alone, and nothing is multiplied.
        assert_eq!(count(code, "HMMA"), counts[0], "{place}: MMA instructions in all");
        assert_eq!(count(code, "LDGSTS"), count(code, "LDGSTS.E.BYPASS.128"), "{place}: copies of less than 16 bytes");
        assert_eq!(count(code, "LDSM"), count(code, "LDSM.16.M88.4") + count(code, "LDSM.16.MT88.4"), "{place}");
        // One load of a page in the loop.
        assert!(count(body, "LDG.") <= 1, "{place}: loads in the main loop");
        if kernel.starts_with("attention_prefill_") {
            assert_eq!(count(code, "STG"), count(code, "STG.E.128"), "{place}: outputs of less than 16 bytes");
        }
    }
}

#[test]
fn decode_on_hopper_sends_its_results_from_registers_without_a_fence() {
    for ((architecture, kernel), code) in listings("decode_on_hopper_sends_its_results…") {
        if !kernel.starts_with("attention_decode_sm90_") {
            continue;
        }
        let place = format!("{kernel} for {architecture}");
        let at = |prefix: &str| code.iter().position(|i| i.operation.starts_with(prefix)).expect(prefix);
        let sent = code.iter().rposition(|i| i.operation.starts_with("STAS")).expect("st.async");
        let (values, states) = if kernel.contains("_64x") { (0, 2) } else { (1, 1) };
        assert_eq!([count(code, "STAS.128"), count(code, "STAS.64")], [values, states], "{place}: results sent");
        assert_eq!(count(&code[at("LDGSTS")..sent], "MEMBAR"), 0, "{place}: fences before the results are sent");
        // Of the barrier that the cluster begins with, and of the counter of clusters.
        assert_eq!(count(code, "MEMBAR.ALL.GPU"), 2, "{place}: fences of the device");
    }
}

/// Matrix instructions of a warpgroup in a turn of prefill's main loop, 128 keys for 64 queries of a consumer: scores
/// of 16 elements of head_dim each, and weighted values of 16 keys each.
const WARPGROUP_PREFILL: [(&str, [usize; 2], &str); 2] = [("_64", [4, 8], "64x64x16"), ("_128", [8, 8], "64x128x16")];

#[test]
fn prefill_on_hopper_multiplies_by_warpgroups_with_the_softmax_under_the_values() {
    for ((architecture, kernel), code) in listings("prefill_on_hopper_multiplies_by_warpgroups…") {
        if !kernel.starts_with("attention_prefill_sm90_") {
            continue;
        }
        let place = format!("{kernel} for {architecture}");
        let (_, [scores, values], shape) =
            WARPGROUP_PREFILL.iter().find(|(end, ..)| kernel.ends_with(end)).expect("a head_dim");
        let body = loop_around(code, "HGMMA", &place);
        let places = |prefix: &str| -> Vec<usize> {
            let found = body.iter().enumerate().filter(|(_, i)| i.operation.starts_with(prefix));
            found.map(|(at, _)| at).collect()
        };
        let products = places("HGMMA");
        assert_eq!(products.len(), scores + values, "{place}: MMA instructions in the main loop");
        for (index, at) in products.iter().enumerate() {
            let shape = if index < *scores { "64x128x16" } else { shape };
            let exact = format!("HGMMA.{shape}.F32{}", if kernel.contains("_bf16_") { ".BF16" } else { "" });
            assert_eq!(body[*at].operation, exact, "{place}: product {index}");
        }
        // The first tile's scores and the last tile's values are outside.
        assert_eq!(count(code, "HGMMA"), 2 * (scores + values), "{place}: MMA instructions in all");
        // Nothing serialises them: a wait for the scores, and no other until the weights are known: 64 exponentials of
        // scores and one of each row's max. Then one of two waits for the values, before and without a rescaling.
        let (waits, weights) = (places("WARPGROUP.DEPBAR"), places("MUFU.EX2"));
        assert_eq!((waits.len(), weights.len()), (3, 66), "{place}: waits and exponentials");
        assert!(products[products.len() - 1] < waits[0], "{place}: a wait between products");
        assert!(waits[0] < weights[0] && weights[65] < waits[1], "{place}: the softmax waits for the values");
        assert_eq!(places("WARPGROUP.ARRIVE").len(), 2, "{place}: fences of registers");
        assert_eq!(places("BAR.").len(), 3, "{place}: its turn, the other's, and a vote of four warps");
        assert_eq!(places("BAR.RED").len(), 1, "{place}: whether one of four warps rescales");
        // R2UR: descriptors of queries depend on the consumer, which the compiler does not know to be one for a warp.
        assert_eq!(places("R2UR").len() % 2, 0, "{place}: halves of descriptors");
        assert!(body.len() - products.len() <= 700, "{place}: {} instructions in the main loop", body.len());
        assert_eq!(places("LDG").len() + places("LDS").len() + places("STS").len(), 0, "{place}: other accesses");

        let panels = if kernel.ends_with("_128") { 2 } else { 1 };
        assert_eq!(count(code, "UTMALDG.2D") % panels, 0, "{place}: boxes of each panel");
        assert!(count(code, "UTMALDG.2D") > 0, "{place}: boxes");
        assert_eq!(count(code, "LDGSTS"), count(code, "LDGSTS.E.BYPASS.128"), "{place}: copies at edges");
        assert_eq!(count(code, "STG"), count(code, "STG.E.128"), "{place}: outputs of less than 16 bytes");
        assert_eq!(count(code, "USETMAXREG"), 2, "{place}: setmaxnreg");
        assert_eq!(count(code, "PREEXIT"), 1, "{place}: griddepcontrol.launch_dependents");
        let wait = code.iter().position(|i| i.operation == "ACQBULK").expect("griddepcontrol.wait");
        let early = ["LDG", "LDGSTS", "UTMALDG"].map(|operation| count(&code[..wait], operation));
        assert_eq!(early, [0; 3], "{place}: read before the wait");
    }
}

/// Matrix instructions and loads of fragments of batch-invariant attention in all, half of prefill's for half of its
/// queries and all of its keys; for head_dim 64 the queries' four are outside of the loop. Warps without queries jump
/// over them, so the loop is no one piece of code.
const ORDERED: [(&str, [usize; 2]); 4] = [
    ("attention_batch_invariant_bf16_64", [64, 32 + 4]),
    ("attention_batch_invariant_f16_64", [64, 32 + 4]),
    ("attention_batch_invariant_bf16_128", [128, 32 + 32 + 8]),
    ("attention_batch_invariant_f16_128", [128, 32 + 32 + 8]),
];

#[test]
fn ordered_attention_multiplies_each_fragment_once() {
    for ((architecture, kernel), code) in listings("ordered_attention_multiplies_each_fragment_once") {
        let Some((_, counts)) = ORDERED.iter().find(|(name, _)| *name == kernel) else { continue };
        let place = format!("{kernel} for {architecture}");
        assert_eq!(["HMMA", "LDSM.16.M"].map(|operation| count(code, operation)), *counts, "{place}");
        assert_eq!(count(code, "LDGSTS"), count(code, "LDGSTS.E.BYPASS.128"), "{place}: copies");
    }
}

#[test]
fn sampling_counts_in_shared_memory_and_needs_no_approximate_logarithm() {
    for ((architecture, kernel), code) in listings("sampling_counts_in_shared_memory…") {
        if kernel != "sample_rows" && kernel != "logprobs_rows" {
            continue;
        }
        let place = format!("{kernel} for {architecture}");
        assert!(count(code, "ATOMS") > 0, "{place}: no histogram in shared memory");
        // The counter of arrivals; anything else at a generic address would be slow, a float not deterministic.
        let generic = code.iter().filter(|i| i.operation.starts_with("ATOM.") || i.operation.starts_with("ATOMG"));
        let generic: Vec<&str> = generic.map(|i| i.operation.as_str()).collect();
        let counters = if kernel == "sample_rows" { 1 } else { 0 };
        assert!(generic.len() == counters && generic.iter().all(|i| i.contains(".INC")), "{place}: {generic:?}");
        assert_eq!(count(code, "RED."), 0, "{place}: reductions in global memory");
        for operation in ["MUFU.EX2", "MUFU.LG2"] {
            assert_eq!(count(code, operation), 0, "{place} uses {operation}");
        }
        assert!(count(code, "LDG.E.128") >= 4, "{place}: loads of four logits");
        if architecture == "sm_90" {
            let wait = code.iter().position(|i| i.operation == "ACQBULK").expect("griddepcontrol.wait");
            assert_eq!(count(&code[..wait], "LDG"), 0, "{place}: nothing is read before griddepcontrol.wait");
            assert_eq!(count(code, "PREEXIT"), 1, "{place}: griddepcontrol.launch_dependents");
        }
    }
}

/// `// Registers: at most 80 (gemv_*_8x16 gemv_*_8x32), 104 (gemv_*_16x32)` of a `.cu`: limit and names.
fn promised_registers(source: &str) -> Vec<(u32, Vec<String>)> {
    let lines = source.lines().filter_map(|line| line.strip_prefix("// Registers: at most "));
    let promises = lines.flat_map(|line| line.split("), "));
    promises
        .map(|promise| {
            let (limit, names) = promise.split_once(" (").expect("a limit and names in brackets");
            let names = names.trim_end_matches(')').split_whitespace().map(str::to_owned).collect();
            (limit.parse().expect("a number of registers"), names)
        })
        .collect()
}

/// Whether `name` is `pattern`, where one `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, end)) => name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end),
        None => name == pattern,
    }
}

/// One entry of ptxas's report.
struct Compiled<'a> {
    kernel: &'a str,
    architecture: &'a str,
    /// Stack frame, spill stores and spill loads in bytes.
    memory: &'a str,
    registers: u32,
}

/// `ptxas info    : Compiling entry function 'norm_layer_bf16' for 'sm_80'`, three lines further
/// `ptxas info    : Used 81 registers, …`.
fn parse_report(report: &str) -> Vec<Compiled<'_>> {
    let lines: Vec<&str> = report.lines().collect();
    let mut compiled = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some((_, names)) = line.split_once("Compiling entry function '") else { continue };
        let (kernel, architecture) = names.trim_end_matches('\'').split_once("' for '").expect("two names");
        let rest = &lines[at + 1..];
        let memory = rest.iter().find(|line| line.contains("bytes stack frame")).expect("a line on the stack").trim();
        let used = rest.iter().find_map(|line| line.split("Used ").nth(1)).expect("a line on registers");
        let registers = used.split(' ').next().unwrap_or_default().parse().expect("a number of registers");
        compiled.push(Compiled { kernel, architecture, memory, registers });
    }
    compiled
}

#[test]
fn ptxas_reports_no_spills_no_stack_and_the_registers_that_each_header_promises() {
    for image in compiled("ptxas_reports…") {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(image.name).with_extension("cu");
        let promises = promised_registers(&fs::read_to_string(source).unwrap());
        let report = fs::read_to_string(built(image, "ptxas")).unwrap();
        for line in report.lines() {
            // C7508, C7510 and their like: setmaxnreg ignored, wgmma serialised.
            assert!(!line.contains("C75"), "{}: {line}", image.name);
            assert!(!line.contains("warning"), "{}: {line}", image.name);
        }
        let compiled = parse_report(&report);
        let machine_targets = image.targets.iter().filter(|target| target.starts_with("sm_")).count();
        assert!(compiled.len() >= machine_targets, "{}: nothing was reported", image.name);
        for Compiled { kernel, architecture, memory, registers } in compiled {
            let place = format!("{kernel} for {architecture}");
            assert_eq!(memory, "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", "{place}");
            let own = promises.iter().filter(|(_, names)| names.iter().any(|pattern| matches(pattern, kernel)));
            let limits: Vec<u32> = own.map(|(limit, _)| *limit).collect();
            assert_eq!(limits.len(), 1, "{place}: its .cu must promise its registers once");
            assert!(registers <= limits[0], "{place}: {registers} registers, {} promised", limits[0]);
            assert!(limits[0] - registers <= 16, "{place}: {registers} registers; promise fewer than {}", limits[0]);
            // With fewer at the start, what setmaxnreg gives away would not be enough for those that take: they would
            // wait for ever.
            let moves_registers = ["attention_prefill_sm90_", "gemm_sm90_"].iter().any(|file| kernel.starts_with(file));
            assert!(!moves_registers || registers == 168, "{place}: {registers} registers at the start, not 168");
        }
    }
}
