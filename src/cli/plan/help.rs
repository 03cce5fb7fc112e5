//! The examples of `rigel plan`, and the fields of its JSON object. Lines of at most 80 characters, so that none is
//! wrapped.

pub(super) const EXAMPLES: &str = "\
Examples:
  rigel plan --model 7b
  rigel plan --model 15b --memory 70GiB --max-seqs 64 --context 8192
  rigel plan --model ./starcoder2-7b --gpu rtx4090
  rigel plan --model config.json --gpu h200 --max-seqs 256 --json";

pub(super) const JSON_HELP: &str = "\
JSON object of --json:
  model, dtype, gpu       what is planned
  sequences               that are planned for: --max-seqs, else as many as fit,
                          up to 256
  context                 positions of a sequence
  prefill_chunk           most prompt tokens of a step
  memory_bytes            that the model may take
  gpu_memory_bytes        that the GPU has, all in all
  lines                   [{what, bytes}, …]: what is allocated, and what stays
                          free for the driver
  needed_bytes            sum of the lines
  fits                    all sequences can have the whole context at once
  starts                  the model runs, if need be with sequences that wait
  page_size               positions of a page of the cache
  pages_of_sequence       pages of a sequence of the whole context
  pages                   that there is memory for
  whole_sequences         sequences of the whole context that these hold
  sequences_at_once       the same, but no more than are planned for
  longest_context         with which all sequences fit; null where they do
  max_sequences          that fit with this context; null if none does
  weight_bytes_per_token  that a decoded token reads
  kv_bytes_per_token      that a token adds to the cache
  cpu                     one sequence on this machine's CPU: weight_bytes,
                          cache_bytes, activation_bytes, needed_bytes,
                          available_bytes, fits; null where not known
  limits                  of each GPU known by name, with 90 % of its memory:
                          gpu, memory_bytes, bytes_per_second,
                          tokens_per_second of one sequence with an empty cache
                          and tokens_per_second_at_context with a full one,
                          and fits, starts and sequences_at_once of a plan
                          for that GPU";
