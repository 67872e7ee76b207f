// The table that an ISA exports. PINION_ISA_NAME is set by the file that includes this.

inline constexpr IsaKernels kTable{.name = PINION_ISA_NAME,
                                   .lanes = kW,
                                   .gemv = gemv,
                                   .gemm = gemm,
                                   .attention = attention,
                                   .attention_split = attention_split,
                                   .attention_merge = attention_merge,
                                   .write_kv = write_kv,
                                   .rope_kv_write = rope_kv_write,
                                   .rope = rope,
                                   .rms_norm = rms_norm,
                                   .add = add_rows,
                                   .gated_act = gated_act,
                                   .embed = embed,
                                   .read = read,
                                   .multiply_add = multiply_add};
