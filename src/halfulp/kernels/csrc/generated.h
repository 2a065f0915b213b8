/* Written by kernels/generate.py from the rules of the library: one function for each program. */
#if HU_PART == 0

static void p00fa0c29567dd100(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v4 = READ(grad);
        const vf v16 = v4 * c0;
        const vf v18 = p * c1;
        const vf v19 = v16 + v18;
        const vf v20 = v19 - v0;
        const vf v22 = v20 * c2;
        const vf v23 = v0 + v22;
        const vf v25 = v1 * c3;
        const vf v26 = v19 * v19;
        const vf v28 = v26 * c4;
        const vf v29 = v25 + v28;
        const vf v30 = sqrtv(v29);
        const vf v32 = v30 * c5;
        const vf v34 = v32 + c6;
        const vf v35 = v23 / v34;
        const vf v37 = maxf(c7, v35);
        const vf v39 = minf(c8, v37);
        const vf v41 = p * c9;
        const vf v43 = v39 * c10;
        const vf v44 = v41 - v43;
        SAVE(0, v23);
        LARGEST(0, v23);
        SAVE(1, v29);
        LARGEST(1, v29);
        stf(new_param + i, v44);
    )
}

static void p08c4f7061067d2d2(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 * v3;
        const vf v8 = v6 + c1;
        const vf v9 = v8 - v1;
        const vf v11 = v9 * c2;
        const vf v12 = v1 + v11;
        const vf v13 = sqrtv(v12);
        const vf v15 = maxf(setf(0x1.b38fb80000000p-127f), v13);
        const vf v16 = v3 / v15;
        const vf v18 = v16 * c3;
        const vf v19 = v18 - v0;
        const vf v21 = v19 * c4;
        const vf v22 = v0 + v21;
        const vf v24 = v22 * c5;
        const vf v25 = v5 - v24;
        SAVE(0, v22);
        LARGEST(0, v22);
        SAVE(1, v12);
        LARGEST(1, v12);
        stf(new_param + i, v25);
    )
}

static void p147b1173a67c3e32(const hu_piece *w) {
    START(1)
    const vf c0 = setf(w->c[0]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = READ(grad);
        const vf v3 = p - v1;
        const vf v4 = v0 + v3;
        const vf v6 = v4 * c0;
        SAVE(0, v6);
        LARGEST(0, v6);
    )
}

static void p1c9490b7e5670205(const hu_piece *w) {
    START(1)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v4 = p * c0;
        const vf v5 = v0 - v2;
        const vf v7 = v5 * c1;
        const vf v8 = v2 + v7;
        const vf v10 = v8 * c2;
        const vf v11 = v4 - v10;
        SAVE(0, v8);
        LARGEST(0, v8);
        stf(new_param + i, v11);
    )
}

static void p291ebb8442685587(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v8 = p * c1;
        const vf v9 = v6 * v6;
        const vf v11 = v1 * c2;
        const vf v13 = v9 * c3;
        const vf v14 = v11 + v13;
        const vf v15 = v6 - v0;
        const vf v17 = v15 * c4;
        const vf v18 = v0 + v17;
        const vf v19 = sqrtv(v14);
        const vf v21 = v19 * c5;
        const vf v23 = v21 + c6;
        const vf v25 = v18 / c7;
        const vf v26 = v25 / v23;
        const vf v28 = maxf(c8, v26);
        const vf v30 = minf(c9, v28);
        const vf v32 = v30 * c10;
        const vf v33 = v8 - v32;
        SAVE(0, v18);
        LARGEST(0, v18);
        SAVE(1, v14);
        LARGEST(1, v14);
        stf(new_param + i, v33);
    )
}

static void p2fc785e7ece0b31b(const hu_piece *w) {
    START(1)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v4 = p * c0;
        const vf v5 = v2 + v4;
        const vf v7 = v5 * c1;
        const vf v9 = v0 * c2;
        const vf v10 = v9 + v7;
        const vf v12 = v10 * c3;
        const vf v13 = p - v12;
        SAVE(0, v10);
        LARGEST(0, v10);
        stf(new_param + i, v13);
    )
}

static void p339764f9c98813ef(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v4 = READ(grad);
        const vf v6 = p * c0;
        const vf v7 = v4 + v6;
        const vf v9 = p * c1;
        const vf v10 = v7 - v0;
        const vf v12 = v10 * c2;
        const vf v13 = v0 + v12;
        const vf v15 = v1 * c3;
        const vf v16 = v7 * v7;
        const vf v18 = v16 * c4;
        const vf v19 = v15 + v18;
        const vm v20 = nef(v2, v2);
        const vf v21 = maxf(v2, v19);
        const vf v22 = self(v20, v2, v21);
        const vf v23 = sqrtv(v22);
        const vf v25 = v23 + c5;
        const vf v27 = setf(0x1.0000000000000p+0f) / v25;
        const vf v29 = v27 * c6;
        const vf v31 = maxf(c7, v29);
        const vf v33 = minf(c8, v31);
        const vf v34 = v33 * v13;
        const vf v35 = v9 - v34;
        SAVE(0, v13);
        LARGEST(0, v13);
        SAVE(1, v19);
        LARGEST(1, v19);
        SAVE(2, v22);
        LARGEST(2, v22);
        stf(new_param + i, v35);
    )
}

static void p39f59c03b55ddb89(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v4 = READ(grad);
        const vf v20 = v4 * c0;
        const vf v21 = v20 - v0;
        const vf v23 = v21 * c1;
        const vf v24 = v0 + v23;
        const vf v26 = v1 * c2;
        const vf v27 = v20 * v20;
        const vf v29 = v27 * c3;
        const vf v30 = v26 + v29;
        const vf v31 = sqrtv(v30);
        const vf v33 = v31 * c4;
        const vf v35 = v33 + c5;
        const vf v36 = v24 / v35;
        const vf v38 = maxf(c6, v36);
        const vf v40 = minf(c7, v38);
        const vf v42 = p * c8;
        const vf v44 = v40 * c9;
        const vf v45 = v42 - v44;
        SAVE(0, v24);
        LARGEST(0, v24);
        SAVE(1, v30);
        LARGEST(1, v30);
        stf(new_param + i, v45);
    )
}

static void p3e4c42420e0298ab(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v5 = READ(grad);
        const vf v17 = v5 * c0;
        const vf v18 = v17 - v0;
        const vf v20 = v18 * c1;
        const vf v21 = v0 + v20;
        const vf v23 = v1 * c2;
        const vf v24 = v17 * v17;
        const vf v26 = v24 * c3;
        const vf v27 = v23 + v26;
        const vm v28 = nef(v2, v2);
        const vf v29 = maxf(v2, v27);
        const vf v30 = self(v28, v2, v29);
        const vf v31 = sqrtv(v30);
        const vf v33 = v31 * c4;
        const vf v35 = v33 + c5;
        const vf v36 = v21 / v35;
        const vf v38 = maxf(c6, v36);
        const vf v40 = minf(c7, v38);
        const vf v42 = p * c8;
        const vf v44 = v40 * c9;
        const vf v45 = v42 - v44;
        SAVE(0, v21);
        LARGEST(0, v21);
        SAVE(1, v27);
        LARGEST(1, v27);
        SAVE(2, v30);
        LARGEST(2, v30);
        stf(new_param + i, v45);
    )
}

static void p48968b7ddfd4a572(const hu_piece *w) {
    START(1)
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf row0 = setf(w->c[0]);
    const vf row1 = setf(w->c[1]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v4 = p * c2;
        const vf v6 = v2 * row0;
        const vf v7 = ldf(w->column[0] + i);
        const vf v8 = v6 * v7;
        const vf v10 = v8 * c3;
        const vf v11 = v10 - v0;
        const vf v13 = v11 * c4;
        const vf v14 = v0 + v13;
        const vf v16 = v14 * row1;
        const vf v17 = ldf(w->column[1] + i);
        const vf v18 = v16 * v17;
        const vf v20 = v18 * c5;
        const vf v21 = v4 - v20;
        SAVE(0, v14);
        LARGEST(0, v14);
        stf(new_param + i, v21);
    )
}

static void p5100af6eb2c8041e(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v8 = p * c1;
        const vf v9 = sqrtv(v1);
        const vf v11 = maxf(c2, v9);
        const vf v12 = v6 / v11;
        const vf v14 = maxf(c3, v12);
        const vf v16 = minf(c4, v14);
        const vf v17 = v16 - v0;
        const vf v19 = v17 * c5;
        const vf v20 = v0 + v19;
        const vf v22 = v20 * c6;
        const vf v23 = v8 - v22;
        const vf v25 = v1 * c7;
        const vf v26 = v6 * v6;
        const vf v28 = v26 * c8;
        const vf v29 = v25 + v28;
        SAVE(0, v20);
        LARGEST(0, v20);
        SAVE(1, v29);
        LARGEST(1, v29);
        stf(new_param + i, v23);
    )
}

static void p57beae91b94a29df(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 * v3;
        const vf v8 = v1 * c1;
        const vf v10 = v6 * c2;
        const vf v11 = v8 + v10;
        const vf v12 = v3 - v0;
        const vf v14 = v12 * c3;
        const vf v15 = v0 + v14;
        const vf v16 = sqrtv(v11);
        const vf v18 = v16 * c4;
        const vf v20 = v18 + c5;
        const vf v22 = v15 / c6;
        const vf v23 = v22 / v20;
        const vf v25 = maxf(c7, v23);
        const vf v27 = minf(c8, v25);
        const vf v29 = v27 * c9;
        const vf v30 = v5 - v29;
        SAVE(0, v15);
        LARGEST(0, v15);
        SAVE(1, v11);
        LARGEST(1, v11);
        stf(new_param + i, v30);
    )
}

static void p5c82364df8fd0eb0(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v8 = p * c1;
        const vf v10 = v1 * c2;
        const vf v11 = v6 * v6;
        const vf v13 = v11 * c3;
        const vf v14 = v10 + v13;
        LARGEST(0, v0);
        SAVE(1, v14);
        LARGEST(1, v14);
        stf(new_param + i, v8);
    )
}

static void p665fe45a3265781e(const hu_piece *w) {
    START(1)
    const vf c0 = setf(w->c[0]);
    FOR_EACH_VECTOR(READ_GRAD,
        const vf v0 = ldf(state[0] + i);
        const vf v1 = READ(grad);
        const vf v2 = v1 - v0;
        const vf v4 = v2 * c0;
        const vf v5 = v0 + v4;
        SAVE(0, v5);
        LARGEST(0, v5);
    )
}

static void p726677d983175d47(const hu_piece *w) {
    MEASURE(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    vi top0 = seti(0);
    vi top1 = seti(0);
    vi top2 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v7 = v6 * v6;
        const vf v9 = v1 * c1;
        const vf v11 = v7 * c2;
        const vf v12 = v9 + v11;
        const vf v13 = v6 - v0;
        const vf v15 = v13 * c3;
        const vf v16 = v0 + v15;
        LARGEST_TERM(0, v3);
        LARGEST_TERM(1, v16);
        LARGEST_TERM(2, v12);
    )
    LARGEST_OF(0);
    LARGEST_OF(1);
    LARGEST_OF(2);
}

static void p747c3dc46538fa69(const hu_piece *w) {
    MEASURE(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    vi top4 = seti(0);
    vi top5 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v7 = v6 - v0;
        const vf v9 = v7 * c1;
        const vf v10 = v0 + v9;
        const vf v12 = v1 * c2;
        const vf v13 = v6 * v6;
        const vf v15 = v13 * c3;
        const vf v16 = v12 + v15;
        const vf v17 = sqrtv(v16);
        const vf v19 = v17 * c4;
        const vf v21 = v19 + c5;
        const vf v23 = v10 / c6;
        const vf v24 = v23 / v21;
        const vf v26 = maxf(c7, v24);
        const vf v28 = minf(c8, v26);
        const vf v29 = p * p;
        const vf v30 = v3 * v3;
        const vf v31 = p * v3;
        const vf v32 = p * v28;
        TERM(0, v29);
        TERM(1, v30);
        TERM(2, v31);
        TERM(3, v32);
        LARGEST_TERM(4, v10);
        LARGEST_TERM(5, v16);
    )
    LARGEST_OF(4);
    LARGEST_OF(5);
}

static void p77d2147820023ae3(const hu_piece *w) {
    START(2)
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    const vf row0 = setf(w->c[0]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v4 = v3 - v0;
        const vf v6 = v4 * c1;
        const vf v7 = v0 + v6;
        const vf v9 = v1 * c2;
        const vf v10 = v3 * v3;
        const vf v12 = v10 * c3;
        const vf v13 = v9 + v12;
        const vf v14 = sqrtv(v13);
        const vf v16 = v14 * c4;
        const vf v18 = v16 + c5;
        const vf v20 = v7 / c6;
        const vf v21 = v20 / v18;
        const vf v23 = maxf(c7, v21);
        const vf v25 = minf(c8, v23);
        const vf v28 = p * row0;
        const vf v29 = v25 - v28;
        const vf v30 = p * c9;
        const vf v32 = v29 * c10;
        const vf v33 = v30 - v32;
        SAVE(0, v7);
        LARGEST(0, v7);
        SAVE(1, v13);
        LARGEST(1, v13);
        stf(new_param + i, v33);
    )
}

static void p7d6af99a50ceaeb2(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    const vf c11 = setf(w->c[11]);
    const vf c12 = setf(w->c[12]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v1 = READ(grad);
        const vf v3 = p * c0;
        const vm v9 = nef(v1, v1);
        const vf v10 = maxf(v1, c2);
        const vf v11 = self(v9, v1, v10);
        const vm v12 = nef(v11, v11);
        const vf v13 = minf(v11, c1);
        const vf v14 = self(v12, v11, v13);
        const vf v15 = v14 - setf(0x0.0p+0f);
        const vf v17 = v15 * c3;
        const vf v18 = setf(0x0.0p+0f) + v17;
        const vf v21 = v14 * v14;
        const vf v23 = v21 * c5;
        const vf v24 = c4 + v23;
        const vf v25 = sqrtv(v24);
        const vf v27 = v25 * c6;
        const vf v29 = v27 + c7;
        const vf v31 = v18 / c8;
        const vf v32 = v31 / v29;
        const vf v34 = maxf(c9, v32);
        const vf v36 = minf(c10, v34);
        const vf v38 = v36 * c11;
        const vf v40 = v38 * c12;
        const vf v41 = v3 - v40;
        CHECK(v1);
        SAVE(0, v18);
        LARGEST(0, v18);
        SAVE(1, v24);
        LARGEST(1, v24);
        stf(new_param + i, v41);
    )
}

static void p84c7fc758eb7bd21(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v7 = v0 * c1;
        const vf v9 = v1 * c2;
        const vf v10 = v7 - v9;
        const vf v11 = v10 - v3;
        const vf v12 = v0 * c2;
        const vf v13 = v1 * c1;
        const vf v14 = v12 + v13;
        const vf v16 = v11 * c3;
        const vf v17 = v5 + v16;
        SAVE(0, v11);
        LARGEST(0, v11);
        SAVE(1, v14);
        LARGEST(1, v14);
        stf(new_param + i, v17);
    )
}

static void p8b9f66e21e7312ef(const hu_piece *w) {
    MEASURE(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    vi top0 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD,
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = READ(grad);
        const vf v3 = v2 * v2;
        const vf v5 = v3 + c0;
        const vf v6 = v5 - v1;
        const vf v8 = v6 * c1;
        const vf v9 = v1 + v8;
        const vf v10 = sqrtv(v9);
        const vf v12 = maxf(setf(0x1.b38fb80000000p-127f), v10);
        const vf v13 = v2 / v12;
        const vf v15 = v13 * c2;
        const vf v16 = v15 - v0;
        const vf v18 = v16 * c3;
        const vf v19 = v0 + v18;
        LARGEST_TERM(0, v19);
    )
    LARGEST_OF(0);
}

static void p9610ec5d38772c4c(const hu_piece *w) {
    MEASURE(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    vi top0 = seti(0);
    vi top1 = seti(0);
    vi top2 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD,
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = READ(grad);
        const vf v3 = v2 - v0;
        const vf v5 = v3 * c0;
        const vf v6 = v0 + v5;
        const vf v8 = v1 * c1;
        const vf v9 = v2 * v2;
        const vf v11 = v9 * c2;
        const vf v12 = v8 + v11;
        LARGEST_TERM(0, v2);
        LARGEST_TERM(1, v6);
        LARGEST_TERM(2, v12);
    )
    LARGEST_OF(0);
    LARGEST_OF(1);
    LARGEST_OF(2);
}

static void p9f8a175b76f9220c(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    const vf c11 = setf(w->c[11]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v4 = READ(grad);
        const vf v6 = v1 * c0;
        const vf v7 = v4 * v4;
        const vf v9 = v7 * c1;
        const vf v10 = v6 + v9;
        const vf v11 = sqrtv(v10);
        const vf v13 = v11 * c2;
        const vf v15 = v13 + c3;
        const vf v20 = v15 * c4;
        const vf v22 = v20 * c5;
        const vf v24 = v4 * c6;
        const vf v26 = v22 + c7;
        const vf v27 = v0 * v26;
        const vf v28 = v24 + v27;
        const vf v29 = v22 + setf(0x1.0000000000000p+0f);
        const vf v30 = v28 / v29;
        const vf v34 = v30 / v20;
        const vm v36 = nef(v34, v34);
        const vf v37 = maxf(v34, c9);
        const vf v38 = self(v36, v34, v37);
        const vm v39 = nef(v38, v38);
        const vf v40 = minf(v38, c8);
        const vf v41 = self(v39, v38, v40);
        const vf v43 = p * c10;
        const vf v45 = v41 * c11;
        const vf v46 = v43 - v45;
        SAVE(0, v30);
        LARGEST(0, v30);
        SAVE(1, v10);
        LARGEST(1, v10);
        stf(new_param + i, v46);
    )
}

static void paa97333bd44a7d75(const hu_piece *w) {
    MEASURE(0)
    const vf c1 = setf(w->c[1]);
    const vf row0 = setf(w->c[0]);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v1 = READ(grad);
        const vf v3 = p * c1;
        const vf v4 = v1 + v3;
        const vf v6 = v4 * row0;
        const vf v7 = ldf(w->column[0] + i);
        const vf v8 = v6 * v7;
        TERM(0, v8);
    )
}

static void pb005fa218eb1b2a0(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    const vf c11 = setf(w->c[11]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v7 = v1 * c1;
        const vf v8 = sqrtv(v7);
        const vf v9 = -v8;
        const vm v10 = nef(v3, v3);
        const vf v11 = maxf(v3, v9);
        const vf v12 = self(v10, v3, v11);
        const vm v13 = nef(v12, v12);
        const vf v14 = minf(v12, v8);
        const vf v15 = self(v13, v12, v14);
        const vf v16 = v15 - v0;
        const vf v18 = v16 * c2;
        const vf v19 = v0 + v18;
        const vf v21 = v1 * c3;
        const vf v22 = v15 * v15;
        const vf v24 = v22 * c4;
        const vf v25 = v21 + v24;
        const vf v26 = sqrtv(v25);
        const vf v28 = v26 * c5;
        const vf v30 = v28 + c6;
        const vf v32 = v19 / c7;
        const vf v33 = v32 / v30;
        const vf v35 = maxf(c8, v33);
        const vf v37 = minf(c9, v35);
        const vf v39 = v37 * c10;
        const vf v41 = v39 * c11;
        const vf v42 = v5 - v41;
        CHECK(v3);
        SAVE(0, v19);
        LARGEST(0, v19);
        SAVE(1, v25);
        LARGEST(1, v25);
        stf(new_param + i, v42);
    )
}

static void pbbda9ee54f43916d(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v4 = READ(grad);
        const vf v6 = p * c0;
        const vf v7 = v4 - v0;
        const vf v9 = v7 * c1;
        const vf v10 = v0 + v9;
        const vf v12 = v1 * c2;
        const vf v13 = v4 * v4;
        const vf v15 = v13 * c3;
        const vf v16 = v12 + v15;
        const vf v17 = v2 - v4;
        const vf v18 = asf(absi(v17));
        const vf v19 = asf(absi(v18));
        const vf v20 = -v19;
        const vf v22 = maxf(setf(-0x1.a000000000000p+6f), v20);
        const vf v24 = minf(setf(0x1.6400000000000p+6f), v22);
        const vf v26 = v24 * setf(0x1.7154760000000p+0f);
        const vi v27 = cvt_rn(v26);
        const vf v28 = itof(v27);
        const vf v30 = v28 * setf(0x1.6300000000000p-1f);
        const vf v31 = v24 - v30;
        const vf v33 = v28 * setf(-0x1.bd01060000000p-13f);
        const vf v34 = v31 - v33;
        const vf v36 = v34 * setf(0x1.a0d2ce0000000p-13f);
        const vf v38 = v36 + setf(0x1.6e879c0000000p-10f);
        const vf v39 = v38 * v34;
        const vf v41 = v39 + setf(0x1.1112100000000p-7f);
        const vf v42 = v41 * v34;
        const vf v44 = v42 + setf(0x1.5553820000000p-5f);
        const vf v45 = v44 * v34;
        const vf v47 = v45 + setf(0x1.5555540000000p-3f);
        const vf v48 = v47 * v34;
        const vf v50 = v48 + setf(0x1.0000000000000p-1f);
        const vf v51 = v34 * v34;
        const vf v52 = v50 * v51;
        const vf v53 = v52 + v34;
        const vf v55 = v53 + setf(0x1.0000000000000p+0f);
        const vi v56 = v27 >> 1;
        const vi v57 = (vi)((vu)v56 + 127u);
        const vi v58 = (vi)((vu)v57 << 23);
        const vf v59 = asf(v58);
        const vf v60 = v55 * v59;
        const vi v61 = (vi)((vu)v27 - (vu)v56);
        const vi v62 = (vi)((vu)v61 + 127u);
        const vi v63 = (vi)((vu)v62 << 23);
        const vf v64 = asf(v63);
        const vf v65 = v60 * v64;
        const vm v67 = ltf(v18, setf(0x0.0p+0f));
        const vf v68 = self(v67, v65, setf(0x1.0000000000000p+0f));
        const vf v69 = v65 + setf(0x1.0000000000000p+0f);
        const vf v70 = v68 / v69;
        const vf v71 = sqrtv(v16);
        const vf v73 = v71 * c4;
        const vf v75 = v73 + c5;
        const vf v77 = v10 / c6;
        const vf v78 = v77 / v75;
        const vf v80 = maxf(c7, v78);
        const vf v82 = minf(c8, v80);
        const vf v83 = v70 * v82;
        const vf v85 = v83 * c9;
        const vf v86 = v6 - v85;
        SAVE(0, v10);
        LARGEST(0, v10);
        SAVE(1, v16);
        LARGEST(1, v16);
        SAVE(2, v4);
        LARGEST(2, v4);
        stf(new_param + i, v86);
    )
}

static void pc5009ba060495476(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    const vf c11 = setf(w->c[11]);
    const vf c12 = setf(w->c[12]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v8 = p * c1;
        const vf v10 = v1 * c2;
        const vf v11 = sqrtv(v10);
        const vf v12 = -v11;
        const vm v13 = nef(v6, v6);
        const vf v14 = maxf(v6, v12);
        const vf v15 = self(v13, v6, v14);
        const vm v16 = nef(v15, v15);
        const vf v17 = minf(v15, v11);
        const vf v18 = self(v16, v15, v17);
        const vf v19 = v18 - v0;
        const vf v21 = v19 * c3;
        const vf v22 = v0 + v21;
        const vf v24 = v1 * c4;
        const vf v25 = v18 * v18;
        const vf v27 = v25 * c5;
        const vf v28 = v24 + v27;
        const vf v29 = sqrtv(v28);
        const vf v31 = v29 * c6;
        const vf v33 = v31 + c7;
        const vf v35 = v22 / c8;
        const vf v36 = v35 / v33;
        const vf v38 = maxf(c9, v36);
        const vf v40 = minf(c10, v38);
        const vf v42 = v40 * c11;
        const vf v44 = v42 * c12;
        const vf v45 = v8 - v44;
        CHECK(v3);
        SAVE(0, v22);
        LARGEST(0, v22);
        SAVE(1, v28);
        LARGEST(1, v28);
        stf(new_param + i, v45);
    )
}

static void pc6f19136398d0935(const hu_piece *w) {
    MEASURE(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    vi top0 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v7 = v6 * v6;
        const vf v9 = v7 + c1;
        const vf v10 = v9 - v0;
        const vf v12 = v10 * c2;
        const vf v13 = v0 + v12;
        const vf v14 = sqrtv(v13);
        const vf v16 = maxf(setf(0x1.b38fb80000000p-127f), v14);
        const vf v17 = v6 / v16;
        const vf v19 = v17 * c3;
        const vf v21 = v19 * c4;
        const vf v22 = v21 - v1;
        const vf v24 = v22 * c5;
        const vf v25 = v1 + v24;
        LARGEST_TERM(0, v25);
    )
    LARGEST_OF(0);
}

static void pccd02fea1328fa94(const hu_piece *w) {
    START(1)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v3 = v2 - v0;
        const vf v5 = v3 * c0;
        const vf v6 = v0 + v5;
        const vf v7 = signf(v6);
        const vf v9 = p * c1;
        const vf v11 = v7 * c2;
        const vf v12 = v9 - v11;
        const vf v14 = v3 * c3;
        const vf v15 = v0 + v14;
        SAVE(0, v15);
        LARGEST(0, v15);
        stf(new_param + i, v12);
    )
}

static void pcfc39c984c21a7eb(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v4 = READ(grad);
        const vf v13 = v4 * c0;
        const vf v14 = v13 - v0;
        const vf v16 = v14 * c1;
        const vf v17 = v0 + v16;
        const vf v19 = v1 * c2;
        const vf v20 = v13 * v13;
        const vf v22 = v20 * c3;
        const vf v23 = v19 + v22;
        const vm v24 = nef(v2, v2);
        const vf v25 = maxf(v2, v23);
        const vf v26 = self(v24, v2, v25);
        const vf v27 = sqrtv(v26);
        const vf v29 = v27 * c4;
        const vf v31 = v29 + c5;
        const vf v32 = v17 / v31;
        const vf v34 = maxf(c6, v32);
        const vf v36 = minf(c7, v34);
        const vf v38 = p * c8;
        const vf v40 = v36 * c9;
        const vf v41 = v38 - v40;
        SAVE(0, v17);
        LARGEST(0, v17);
        SAVE(1, v23);
        LARGEST(1, v23);
        SAVE(2, v26);
        LARGEST(2, v26);
        stf(new_param + i, v41);
    )
}

static void pd47cf8fb9d2d13bf(const hu_piece *w) {
    START(2)
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    const vf c11 = setf(w->c[11]);
    const vf row0 = setf(w->c[0]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c1;
        const vf v6 = v3 + v5;
        const vf v7 = v6 - v0;
        const vf v9 = v7 * c2;
        const vf v10 = v0 + v9;
        const vf v12 = v1 * c3;
        const vf v13 = v6 * v6;
        const vf v15 = v13 * c4;
        const vf v16 = v12 + v15;
        const vf v17 = sqrtv(v16);
        const vf v19 = v17 * c5;
        const vf v21 = v19 + c6;
        const vf v23 = v10 / c7;
        const vf v24 = v23 / v21;
        const vf v26 = maxf(c8, v24);
        const vf v28 = minf(c9, v26);
        const vf v31 = p * row0;
        const vf v32 = v28 - v31;
        const vf v33 = p * c10;
        const vf v35 = v32 * c11;
        const vf v36 = v33 - v35;
        SAVE(0, v10);
        LARGEST(0, v10);
        SAVE(1, v16);
        LARGEST(1, v16);
        stf(new_param + i, v36);
    )
}

static void pde458c82ce0eef36(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v4 = v3 - v0;
        const vf v6 = v4 * c0;
        const vf v7 = v0 + v6;
        const vf v9 = v1 * c1;
        const vf v10 = v3 * v3;
        const vf v12 = v10 * c2;
        const vf v13 = v9 + v12;
        const vf v14 = sqrtv(v13);
        const vf v16 = v14 * c3;
        const vf v18 = v16 + c4;
        const vf v19 = v7 / v18;
        const vf v21 = maxf(c5, v19);
        const vf v23 = minf(c6, v21);
        const vf v25 = p * c7;
        const vf v27 = v23 * c8;
        const vf v28 = v25 - v27;
        SAVE(0, v7);
        LARGEST(0, v7);
        SAVE(1, v13);
        LARGEST(1, v13);
        stf(new_param + i, v28);
    )
}

static void pe709ebc3369d4804(const hu_piece *w) {
    MEASURE(1)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    vi top2 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v3 = v2 * v2;
        const vf v5 = v3 + c0;
        const vf v6 = v5 - v0;
        const vf v8 = v6 * c1;
        const vf v9 = v0 + v8;
        const vf v10 = sqrtv(v9);
        const vf v12 = maxf(setf(0x1.b38fb80000000p-127f), v10);
        const vf v13 = v2 / v12;
        TERM(0, v13);
        TERM(1, p);
        LARGEST_TERM(2, v9);
    )
    LARGEST_OF(2);
}

static void pefe52ef28897e559(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    const vf c11 = setf(w->c[11]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v4 = READ(grad);
        const vf v6 = p * c0;
        const vf v7 = v4 - v0;
        const vf v9 = v7 * c1;
        const vf v10 = v0 + v9;
        const vf v12 = v1 * c2;
        const vf v13 = v4 * v4;
        const vf v15 = v13 * c3;
        const vf v16 = v12 + v15;
        const vf v17 = v4 - v2;
        const vf v19 = v17 * c4;
        const vf v20 = v2 + v19;
        const vf v21 = sqrtv(v16);
        const vf v23 = v21 * c5;
        const vf v25 = v23 + c6;
        const vf v27 = v10 / c7;
        const vf v29 = v20 * c8;
        const vf v30 = v27 + v29;
        const vf v31 = v30 / v25;
        const vf v33 = maxf(c9, v31);
        const vf v35 = minf(c10, v33);
        const vf v37 = v35 * c11;
        const vf v38 = v6 - v37;
        SAVE(0, v10);
        LARGEST(0, v10);
        SAVE(1, v16);
        LARGEST(1, v16);
        SAVE(2, v20);
        LARGEST(2, v20);
        stf(new_param + i, v38);
    )
}

static void pf3ff5bb9d559fcfb(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v8 = p * c1;
        const vf v9 = v6 - v0;
        const vf v11 = v9 * c2;
        const vf v12 = v0 + v11;
        const vf v13 = v6 * v6;
        const vf v15 = v1 * c3;
        const vf v17 = v13 * c4;
        const vf v18 = v15 + v17;
        const vf v19 = sqrtv(v18);
        const vf v21 = v19 * c5;
        const vf v23 = v21 + c6;
        const vf v25 = v12 / c7;
        const vf v26 = v25 / v23;
        const vf v28 = maxf(c8, v26);
        const vf v30 = minf(c9, v28);
        const vf v32 = v30 * c10;
        const vf v33 = v8 - v32;
        SAVE(0, v12);
        LARGEST(0, v12);
        SAVE(1, v18);
        LARGEST(1, v18);
        stf(new_param + i, v33);
    )
}

static void pfa5b999abcc5f71b(const hu_piece *w) {
    START(1)
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf row0 = setf(w->c[0]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v4 = p * c1;
        const vf v5 = v2 + v4;
        const vf v7 = v5 * row0;
        const vf v8 = ldf(w->column[0] + i);
        const vf v9 = v7 * v8;
        const vf v11 = v9 * c2;
        const vf v13 = v11 * c3;
        const vf v14 = v13 - v0;
        const vf v16 = v14 * c4;
        const vf v17 = v0 + v16;
        const vf v19 = p * c5;
        const vf v20 = v19 - v17;
        SAVE(0, v17);
        LARGEST(0, v17);
        stf(new_param + i, v20);
    )
}

static const hu_program table[] = {
    {0x00fa0c29567dd100u, p00fa0c29567dd100},
    {0x08c4f7061067d2d2u, p08c4f7061067d2d2},
    {0x147b1173a67c3e32u, p147b1173a67c3e32},
    {0x1c9490b7e5670205u, p1c9490b7e5670205},
    {0x291ebb8442685587u, p291ebb8442685587},
    {0x2fc785e7ece0b31bu, p2fc785e7ece0b31b},
    {0x339764f9c98813efu, p339764f9c98813ef},
    {0x39f59c03b55ddb89u, p39f59c03b55ddb89},
    {0x3e4c42420e0298abu, p3e4c42420e0298ab},
    {0x48968b7ddfd4a572u, p48968b7ddfd4a572},
    {0x5100af6eb2c8041eu, p5100af6eb2c8041e},
    {0x57beae91b94a29dfu, p57beae91b94a29df},
    {0x5c82364df8fd0eb0u, p5c82364df8fd0eb0},
    {0x665fe45a3265781eu, p665fe45a3265781e},
    {0x726677d983175d47u, p726677d983175d47},
    {0x747c3dc46538fa69u, p747c3dc46538fa69},
    {0x77d2147820023ae3u, p77d2147820023ae3},
    {0x7d6af99a50ceaeb2u, p7d6af99a50ceaeb2},
    {0x84c7fc758eb7bd21u, p84c7fc758eb7bd21},
    {0x8b9f66e21e7312efu, p8b9f66e21e7312ef},
    {0x9610ec5d38772c4cu, p9610ec5d38772c4c},
    {0x9f8a175b76f9220cu, p9f8a175b76f9220c},
    {0xaa97333bd44a7d75u, paa97333bd44a7d75},
    {0xb005fa218eb1b2a0u, pb005fa218eb1b2a0},
    {0xbbda9ee54f43916du, pbbda9ee54f43916d},
    {0xc5009ba060495476u, pc5009ba060495476},
    {0xc6f19136398d0935u, pc6f19136398d0935},
    {0xccd02fea1328fa94u, pccd02fea1328fa94},
    {0xcfc39c984c21a7ebu, pcfc39c984c21a7eb},
    {0xd47cf8fb9d2d13bfu, pd47cf8fb9d2d13bf},
    {0xde458c82ce0eef36u, pde458c82ce0eef36},
    {0xe709ebc3369d4804u, pe709ebc3369d4804},
    {0xefe52ef28897e559u, pefe52ef28897e559},
    {0xf3ff5bb9d559fcfbu, pf3ff5bb9d559fcfb},
    {0xfa5b999abcc5f71bu, pfa5b999abcc5f71b},
};
#endif

#if HU_PART == 1

static void p03d8fdcb2727c609(const hu_piece *w) {
    START(1)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v3 = v2 * v2;
        const vf v5 = v3 + c0;
        const vf v6 = v5 - v0;
        const vf v8 = v6 * c1;
        const vf v9 = v0 + v8;
        const vf v10 = sqrtv(v9);
        const vf v12 = maxf(setf(0x1.b38fb80000000p-127f), v10);
        const vf v13 = v2 / v12;
        const vf v15 = v13 * c2;
        const vf v17 = v15 * c3;
        const vf v19 = p * c4;
        const vf v20 = v19 - v17;
        SAVE(0, v9);
        LARGEST(0, v9);
        stf(new_param + i, v20);
    )
}

static void p0be2c05161ef3564(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = v3 * c0;
        const vf v6 = v5 - v0;
        const vf v8 = v6 * c1;
        const vf v9 = v0 + v8;
        const vf v11 = v1 * c2;
        const vf v12 = v5 * v5;
        const vf v14 = v12 * c3;
        const vf v15 = v11 + v14;
        const vf v16 = sqrtv(v15);
        const vf v18 = v16 * c4;
        const vf v20 = v18 + c5;
        const vf v21 = v9 / v20;
        const vf v23 = maxf(c6, v21);
        const vf v25 = minf(c7, v23);
        const vf v27 = p * c8;
        const vf v29 = v25 * c9;
        const vf v30 = v27 - v29;
        SAVE(0, v9);
        LARGEST(0, v9);
        SAVE(1, v15);
        LARGEST(1, v15);
        stf(new_param + i, v30);
    )
}

static void p18b12ec5c3c745eb(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 - v0;
        const vf v8 = v6 * c1;
        const vf v9 = v0 + v8;
        const vf v11 = v1 * c2;
        const vf v12 = v3 * v3;
        const vf v14 = v12 * c3;
        const vf v15 = v11 + v14;
        const vf v16 = sqrtv(v15);
        const vf v18 = v16 + c4;
        const vf v20 = setf(0x1.0000000000000p+0f) / v18;
        const vf v22 = v20 * c5;
        const vf v24 = maxf(c6, v22);
        const vf v26 = minf(c7, v24);
        const vf v27 = v26 * v9;
        const vf v28 = v5 - v27;
        SAVE(0, v9);
        LARGEST(0, v9);
        SAVE(1, v15);
        LARGEST(1, v15);
        stf(new_param + i, v28);
    )
}

static void p1e3891705edf563a(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v4 = READ(grad);
        const vf v5 = v4 - v0;
        const vf v7 = v5 * c0;
        const vf v8 = v0 + v7;
        const vf v10 = v1 * c1;
        const vf v11 = v4 * v4;
        const vf v13 = v11 * c2;
        const vf v14 = v10 + v13;
        const vm v15 = nef(v2, v2);
        const vf v16 = maxf(v2, v14);
        const vf v17 = self(v15, v2, v16);
        const vf v18 = sqrtv(v17);
        const vf v20 = v18 * c3;
        const vf v22 = v20 + c4;
        const vf v23 = v8 / v22;
        const vf v25 = maxf(c5, v23);
        const vf v27 = minf(c6, v25);
        const vf v29 = p * c7;
        const vf v31 = v27 * c8;
        const vf v32 = v29 - v31;
        SAVE(0, v8);
        LARGEST(0, v8);
        SAVE(1, v14);
        LARGEST(1, v14);
        SAVE(2, v17);
        LARGEST(2, v17);
        stf(new_param + i, v32);
    )
}

static void p2aba88c3c6ea299d(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v8 = p * c1;
        const vf v9 = v6 - v0;
        const vf v11 = v9 * c2;
        const vf v12 = v0 + v11;
        const vf v13 = v6 - v12;
        const vf v15 = v1 * c3;
        const vf v16 = v13 * v13;
        const vf v18 = v16 * c4;
        const vf v19 = v15 + v18;
        const vf v21 = v19 + c5;
        const vf v22 = sqrtv(v21);
        const vf v24 = v22 * c6;
        const vf v25 = v24 + c5;
        const vf v27 = v12 / c7;
        const vf v28 = v27 / v25;
        const vf v30 = v28 * c8;
        const vf v31 = v8 - v30;
        SAVE(0, v12);
        LARGEST(0, v12);
        SAVE(1, v21);
        LARGEST(1, v21);
        stf(new_param + i, v31);
    )
}

static void p31d30db970a40c10(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    const vf c11 = setf(w->c[11]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v1 = READ(grad);
        const vf v3 = p * c0;
        const vf v4 = v1 + v3;
        const vf v6 = p * c1;
        const vf v8 = v4 - setf(0x0.0p+0f);
        const vf v10 = v8 * c2;
        const vf v11 = setf(0x0.0p+0f) + v10;
        const vf v14 = v4 * v4;
        const vf v16 = v14 * c4;
        const vf v17 = c3 + v16;
        const vf v18 = sqrtv(v17);
        const vf v20 = v18 * c5;
        const vf v22 = v20 + c6;
        const vf v24 = v11 / c7;
        const vf v25 = v24 / v22;
        const vf v27 = maxf(c8, v25);
        const vf v29 = minf(c9, v27);
        const vf v31 = v29 * c10;
        const vf v33 = v31 * c11;
        const vf v34 = v6 - v33;
        SAVE(0, v11);
        LARGEST(0, v11);
        SAVE(1, v17);
        LARGEST(1, v17);
        stf(new_param + i, v34);
    )
}

static void p3491918b955054a6(const hu_piece *w) {
    MEASURE(1)
    const vf c0 = setf(w->c[0]);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v4 = p * c0;
        const vf v5 = v2 + v4;
        const vf v6 = v0 - v5;
        TERM(0, v5);
        TERM(1, v6);
    )
}

static void p3a7d8b97671faee5(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v4 = READ(grad);
        const vf v16 = v4 * c0;
        const vf v17 = v16 - v0;
        const vf v19 = v17 * c1;
        const vf v20 = v0 + v19;
        const vf v22 = v1 * c2;
        const vf v23 = v16 * v16;
        const vf v25 = v23 * c3;
        const vf v26 = v22 + v25;
        const vf v27 = sqrtv(v26);
        const vf v29 = v27 * c4;
        const vf v31 = v29 + c5;
        const vf v32 = v20 / v31;
        const vf v34 = maxf(c6, v32);
        const vf v36 = minf(c7, v34);
        const vf v38 = p * c8;
        const vf v40 = v36 * c9;
        const vf v41 = v38 - v40;
        SAVE(0, v20);
        LARGEST(0, v20);
        SAVE(1, v26);
        LARGEST(1, v26);
        stf(new_param + i, v41);
    )
}

static void p40a335c1c6b77c57(const hu_piece *w) {
    START(1)
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf row0 = setf(w->c[0]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v4 = v2 * row0;
        const vf v5 = ldf(w->column[0] + i);
        const vf v6 = v4 * v5;
        const vf v8 = v6 * c1;
        const vf v10 = v8 * c2;
        const vf v11 = v10 - v0;
        const vf v13 = v11 * c3;
        const vf v14 = v0 + v13;
        const vf v16 = p * c4;
        const vf v17 = v16 - v14;
        SAVE(0, v14);
        LARGEST(0, v14);
        stf(new_param + i, v17);
    )
}

static void p4aa12c651e3442c9(const hu_piece *w) {
    MEASURE(1)
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf row0 = setf(w->c[0]);
    vi top0 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD,
        const vf v0 = ldf(state[0] + i);
        const vf v1 = READ(grad);
        const vf v3 = v1 * row0;
        const vf v4 = ldf(w->column[0] + i);
        const vf v5 = v3 * v4;
        const vf v7 = v5 * c1;
        const vf v9 = v7 * c2;
        const vf v10 = v9 - v0;
        const vf v12 = v10 * c3;
        const vf v13 = v0 + v12;
        LARGEST_TERM(0, v13);
    )
    LARGEST_OF(0);
}

static void p5335c58038b0affa(const hu_piece *w) {
    MEASURE(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    vi top4 = seti(0);
    vi top5 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v4 = v3 - v0;
        const vf v6 = v4 * c0;
        const vf v7 = v0 + v6;
        const vf v9 = v1 * c1;
        const vf v10 = v3 * v3;
        const vf v12 = v10 * c2;
        const vf v13 = v9 + v12;
        const vf v14 = sqrtv(v13);
        const vf v16 = v14 * c3;
        const vf v18 = v16 + c4;
        const vf v20 = v7 / c5;
        const vf v21 = v20 / v18;
        const vf v23 = maxf(c6, v21);
        const vf v25 = minf(c7, v23);
        const vf v26 = p * p;
        const vf v27 = p * v3;
        const vf v28 = p * v25;
        TERM(0, v26);
        TERM(1, v10);
        TERM(2, v27);
        TERM(3, v28);
        LARGEST_TERM(4, v7);
        LARGEST_TERM(5, v13);
    )
    LARGEST_OF(4);
    LARGEST_OF(5);
}

static void p58300b9d70f224b6(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v4 = READ(grad);
        const vf v6 = p * c0;
        const vf v7 = v4 + v6;
        const vf v9 = p * c1;
        const vf v11 = v7 * c2;
        const vf v12 = v0 + v11;
        const vf v13 = v7 * v7;
        const vf v14 = v13 * c2;
        const vf v15 = v1 + v14;
        const vf v16 = asf(absi(v15));
        const vm v18 = ltf(v16, setf(0x1.4484c00000000p-100f));
        const vm v20 = ltf(setf(0x1.93e5940000000p+99f), v16);
        const vf v22 = v16 * setf(0x1.0000000000000p+72f);
        const vf v24 = v16 * setf(0x1.0000000000000p-72f);
        const vf v25 = self(v20, v24, v16);
        const vf v26 = self(v18, v22, v25);
        const vi v27 = asi(v26);
        const vf v28 = itof(v27);
        const vf v30 = v28 * setf(0x1.5555560000000p-2f);
        const vi v31 = cvt_rn(v30);
        const vi v32 = (vi)((vu)v31 + 709965728u);
        const vf v33 = asf(v32);
        const vf v34 = v33 * v33;
        const vf v35 = v34 * v33;
        const vf v36 = v35 - v26;
        const vf v37 = v35 + v35;
        const vf v38 = v37 + v26;
        const vf v39 = v36 / v38;
        const vf v40 = v33 * v39;
        const vf v41 = v33 - v40;
        const vf v42 = v41 * v41;
        const vf v43 = v42 * v41;
        const vf v44 = v43 - v26;
        const vf v45 = v43 + v43;
        const vf v46 = v45 + v26;
        const vf v47 = v44 / v46;
        const vf v48 = v41 * v47;
        const vf v49 = v41 - v48;
        const vf v51 = v49 * setf(0x1.0000000000000p-24f);
        const vf v53 = v49 * setf(0x1.0000000000000p+24f);
        const vf v54 = self(v20, v53, v49);
        const vf v55 = self(v18, v51, v54);
        const vm v57 = ltf(v15, setf(0x0.0p+0f));
        const vf v58 = -v55;
        const vf v59 = self(v57, v58, v55);
        const vm v60 = ltf(setf(0x0.0p+0f), v16);
        const vm v62 = ltf(v16, setf(INFINITY));
        const vm v63 = andm(v60, v62);
        const vf v64 = self(v63, v59, v15);
        const vf v66 = v64 + c3;
        const vf v67 = v12 / v66;
        const vf v68 = v2 - v67;
        const vf v69 = v68 - v9;
        const vf v71 = v69 * c4;
        const vf v72 = v9 + v71;
        SAVE(0, v12);
        LARGEST(0, v12);
        SAVE(1, v15);
        LARGEST(1, v15);
        LARGEST(2, v2);
        stf(new_param + i, v72);
    )
}

static void p5d6a8e25072b7f21(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v4 = READ(grad);
        const vf v6 = p * c0;
        const vf v7 = v4 + v6;
        const vf v9 = p * c1;
        const vf v10 = v7 - v0;
        const vf v12 = v10 * c2;
        const vf v13 = v0 + v12;
        const vf v15 = v1 * c3;
        const vf v16 = v7 * v7;
        const vf v18 = v16 * c4;
        const vf v19 = v15 + v18;
        const vf v20 = v2 - v7;
        const vf v21 = asf(absi(v20));
        const vf v22 = asf(absi(v21));
        const vf v23 = -v22;
        const vf v25 = maxf(setf(-0x1.a000000000000p+6f), v23);
        const vf v27 = minf(setf(0x1.6400000000000p+6f), v25);
        const vf v29 = v27 * setf(0x1.7154760000000p+0f);
        const vi v30 = cvt_rn(v29);
        const vf v31 = itof(v30);
        const vf v33 = v31 * setf(0x1.6300000000000p-1f);
        const vf v34 = v27 - v33;
        const vf v36 = v31 * setf(-0x1.bd01060000000p-13f);
        const vf v37 = v34 - v36;
        const vf v39 = v37 * setf(0x1.a0d2ce0000000p-13f);
        const vf v41 = v39 + setf(0x1.6e879c0000000p-10f);
        const vf v42 = v41 * v37;
        const vf v44 = v42 + setf(0x1.1112100000000p-7f);
        const vf v45 = v44 * v37;
        const vf v47 = v45 + setf(0x1.5553820000000p-5f);
        const vf v48 = v47 * v37;
        const vf v50 = v48 + setf(0x1.5555540000000p-3f);
        const vf v51 = v50 * v37;
        const vf v53 = v51 + setf(0x1.0000000000000p-1f);
        const vf v54 = v37 * v37;
        const vf v55 = v53 * v54;
        const vf v56 = v55 + v37;
        const vf v58 = v56 + setf(0x1.0000000000000p+0f);
        const vi v59 = v30 >> 1;
        const vi v60 = (vi)((vu)v59 + 127u);
        const vi v61 = (vi)((vu)v60 << 23);
        const vf v62 = asf(v61);
        const vf v63 = v58 * v62;
        const vi v64 = (vi)((vu)v30 - (vu)v59);
        const vi v65 = (vi)((vu)v64 + 127u);
        const vi v66 = (vi)((vu)v65 << 23);
        const vf v67 = asf(v66);
        const vf v68 = v63 * v67;
        const vm v70 = ltf(v21, setf(0x0.0p+0f));
        const vf v71 = self(v70, v68, setf(0x1.0000000000000p+0f));
        const vf v72 = v68 + setf(0x1.0000000000000p+0f);
        const vf v73 = v71 / v72;
        const vf v74 = sqrtv(v19);
        const vf v76 = v74 * c5;
        const vf v78 = v76 + c6;
        const vf v80 = v13 / c7;
        const vf v81 = v80 / v78;
        const vf v83 = maxf(c8, v81);
        const vf v85 = minf(c9, v83);
        const vf v86 = v73 * v85;
        const vf v88 = v86 * c10;
        const vf v89 = v9 - v88;
        SAVE(0, v13);
        LARGEST(0, v13);
        SAVE(1, v19);
        LARGEST(1, v19);
        SAVE(2, v7);
        LARGEST(2, v7);
        stf(new_param + i, v89);
    )
}

static void p67b0d230bc25dfba(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v4 = READ(grad);
        const vf v6 = p * c0;
        const vf v7 = v4 + v6;
        const vf v9 = p * c1;
        const vf v10 = v7 - v0;
        const vf v12 = v10 * c2;
        const vf v13 = v0 + v12;
        const vf v15 = v1 * c3;
        const vf v16 = v7 * v7;
        const vf v18 = v16 * c4;
        const vf v19 = v15 + v18;
        const vf v20 = sqrtv(v19);
        const vf v22 = v20 + c5;
        const vf v24 = setf(0x1.0000000000000p+0f) / v22;
        const vf v26 = v24 * c6;
        const vf v28 = v2 * c7;
        const vf v30 = v26 * c8;
        const vf v31 = v28 + v30;
        const vm v32 = nef(v26, v26);
        const vf v33 = minf(v26, v31);
        const vf v34 = self(v32, v26, v33);
        const vf v35 = v34 * v13;
        const vf v37 = maxf(c9, v35);
        const vf v39 = minf(c10, v37);
        const vf v40 = v9 - v39;
        SAVE(0, v13);
        LARGEST(0, v13);
        SAVE(1, v19);
        LARGEST(1, v19);
        SAVE(2, v31);
        LARGEST(2, v31);
        stf(new_param + i, v40);
    )
}

static void p73c5177298ec2b6d(const hu_piece *w) {
    MEASURE(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    vi top0 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v7 = v6 * v6;
        const vf v9 = v7 + c1;
        const vf v10 = v9 - v1;
        const vf v12 = v10 * c2;
        const vf v13 = v1 + v12;
        const vf v14 = sqrtv(v13);
        const vf v16 = maxf(setf(0x1.b38fb80000000p-127f), v14);
        const vf v17 = v6 / v16;
        const vf v19 = v17 * c3;
        const vf v20 = v19 - v0;
        const vf v22 = v20 * c4;
        const vf v23 = v0 + v22;
        LARGEST_TERM(0, v23);
    )
    LARGEST_OF(0);
}

static void p76bac5fc0e95fd77(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v4 = READ(grad);
        const vf v20 = v4 * c0;
        const vf v22 = p * c1;
        const vf v23 = v20 + v22;
        const vf v24 = v23 - v0;
        const vf v26 = v24 * c2;
        const vf v27 = v0 + v26;
        const vf v29 = v1 * c3;
        const vf v30 = v23 * v23;
        const vf v32 = v30 * c4;
        const vf v33 = v29 + v32;
        const vf v34 = sqrtv(v33);
        const vf v36 = v34 * c5;
        const vf v38 = v36 + c6;
        const vf v39 = v27 / v38;
        const vf v41 = maxf(c7, v39);
        const vf v43 = minf(c8, v41);
        const vf v45 = p * c9;
        const vf v47 = v43 * c10;
        const vf v48 = v45 - v47;
        SAVE(0, v27);
        LARGEST(0, v27);
        SAVE(1, v33);
        LARGEST(1, v33);
        stf(new_param + i, v48);
    )
}

static void p785a4b066a7d2cb7(const hu_piece *w) {
    MEASURE(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v7 = v6 - v0;
        const vf v9 = v7 * c1;
        const vf v10 = v0 + v9;
        const vf v12 = v1 * c2;
        const vf v13 = v6 * v6;
        const vf v15 = v13 * c3;
        const vf v16 = v12 + v15;
        const vf v17 = sqrtv(v16);
        const vf v19 = v17 * c4;
        const vf v21 = v19 + c5;
        const vf v23 = v10 / c6;
        const vf v24 = v23 / v21;
        const vf v26 = maxf(c7, v24);
        const vf v28 = minf(c8, v26);
        TERM(0, v28);
        PRODUCT(1, v28, v6);
    )
}

static void p7daa22959f5c057d(const hu_piece *w) {
    MEASURE(0)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v1 = READ(grad);
        const vf v3 = p * c0;
        const vf v4 = v1 + v3;
        const vf v5 = v4 * v4;
        const vf v7 = v5 + c1;
        TERM(0, v7);
    )
}

static void p8576c47ca2bfc420(const hu_piece *w) {
    MEASURE(1)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    vi top1 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v4 = p * c0;
        const vf v5 = v2 + v4;
        const vf v6 = v5 * v5;
        const vf v8 = v6 + c1;
        const vf v9 = v8 - v0;
        const vf v11 = v9 * c2;
        const vf v12 = v0 + v11;
        const vf v13 = sqrtv(v12);
        const vf v15 = maxf(setf(0x1.b38fb80000000p-127f), v13);
        const vf v16 = v5 / v15;
        TERM(0, v16);
        LARGEST_TERM(1, v12);
    )
    LARGEST_OF(1);
}

static void p8c0fc14d5f9bedde(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v12 = v3 * c0;
        const vf v14 = p * c1;
        const vf v15 = v12 + v14;
        const vf v16 = v15 - v0;
        const vf v18 = v16 * c2;
        const vf v19 = v0 + v18;
        const vf v21 = v1 * c3;
        const vf v22 = v15 * v15;
        const vf v24 = v22 * c4;
        const vf v25 = v21 + v24;
        const vf v26 = sqrtv(v25);
        const vf v28 = v26 * c5;
        const vf v30 = v28 + c6;
        const vf v31 = v19 / v30;
        const vf v33 = maxf(c7, v31);
        const vf v35 = minf(c8, v33);
        const vf v37 = p * c9;
        const vf v39 = v35 * c10;
        const vf v40 = v37 - v39;
        SAVE(0, v19);
        LARGEST(0, v19);
        SAVE(1, v25);
        LARGEST(1, v25);
        stf(new_param + i, v40);
    )
}

static void p9d31862db63a0763(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    const vf c11 = setf(w->c[11]);
    const vf c12 = setf(w->c[12]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v8 = p * c1;
        const vf v9 = v6 - v0;
        const vf v11 = v9 * c2;
        const vf v12 = v0 + v11;
        const vf v14 = v1 * c3;
        const vf v15 = v6 * v6;
        const vf v17 = v15 * c4;
        const vf v18 = v14 + v17;
        const vf v19 = v12 * v12;
        const vf v21 = v18 + c5;
        const vf v22 = v18 / v21;
        const vf v24 = v22 * c6;
        const vf v26 = v24 + setf(0x1.0000000000000p+0f);
        const vf v27 = v19 + c5;
        const vf v28 = v19 / v27;
        const vf v30 = v28 * c7;
        const vf v31 = v30 + setf(0x1.0000000000000p+0f);
        const vf v33 = v18 * c8;
        const vf v34 = v33 * v31;
        const vf v35 = sqrtv(v34);
        const vf v36 = v12 + v6;
        const vf v38 = v36 / c9;
        const vf v39 = v38 * v26;
        const vf v40 = v35 + c5;
        const vf v41 = v39 / v40;
        const vf v43 = maxf(c10, v41);
        const vf v45 = minf(c11, v43);
        const vf v47 = v45 * c12;
        const vf v48 = v8 - v47;
        SAVE(0, v12);
        LARGEST(0, v12);
        SAVE(1, v18);
        LARGEST(1, v18);
        stf(new_param + i, v48);
    )
}

static void pa26115642395e2b2(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v7 = v6 * v6;
        const vf v9 = v7 + c1;
        const vf v10 = v9 - v0;
        const vf v12 = v10 * c2;
        const vf v13 = v0 + v12;
        const vf v14 = sqrtv(v13);
        const vf v16 = maxf(setf(0x1.b38fb80000000p-127f), v14);
        const vf v17 = v6 / v16;
        const vf v19 = v17 * c3;
        const vf v21 = v19 * c4;
        const vf v22 = v21 - v1;
        const vf v24 = v22 * c5;
        const vf v25 = v1 + v24;
        const vf v27 = p * c6;
        const vf v28 = v27 - v25;
        SAVE(0, v13);
        LARGEST(0, v13);
        SAVE(1, v25);
        LARGEST(1, v25);
        stf(new_param + i, v28);
    )
}

static void paf3aaadc744ceae2(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v4 = READ(grad);
        const vf v6 = p * c0;
        const vf v8 = v4 * c1;
        const vf v9 = v0 + v8;
        const vf v10 = v4 * v4;
        const vf v11 = v10 * c1;
        const vf v12 = v1 + v11;
        const vf v13 = asf(absi(v12));
        const vm v15 = ltf(v13, setf(0x1.4484c00000000p-100f));
        const vm v17 = ltf(setf(0x1.93e5940000000p+99f), v13);
        const vf v19 = v13 * setf(0x1.0000000000000p+72f);
        const vf v21 = v13 * setf(0x1.0000000000000p-72f);
        const vf v22 = self(v17, v21, v13);
        const vf v23 = self(v15, v19, v22);
        const vi v24 = asi(v23);
        const vf v25 = itof(v24);
        const vf v27 = v25 * setf(0x1.5555560000000p-2f);
        const vi v28 = cvt_rn(v27);
        const vi v29 = (vi)((vu)v28 + 709965728u);
        const vf v30 = asf(v29);
        const vf v31 = v30 * v30;
        const vf v32 = v31 * v30;
        const vf v33 = v32 - v23;
        const vf v34 = v32 + v32;
        const vf v35 = v34 + v23;
        const vf v36 = v33 / v35;
        const vf v37 = v30 * v36;
        const vf v38 = v30 - v37;
        const vf v39 = v38 * v38;
        const vf v40 = v39 * v38;
        const vf v41 = v40 - v23;
        const vf v42 = v40 + v40;
        const vf v43 = v42 + v23;
        const vf v44 = v41 / v43;
        const vf v45 = v38 * v44;
        const vf v46 = v38 - v45;
        const vf v48 = v46 * setf(0x1.0000000000000p-24f);
        const vf v50 = v46 * setf(0x1.0000000000000p+24f);
        const vf v51 = self(v17, v50, v46);
        const vf v52 = self(v15, v48, v51);
        const vm v54 = ltf(v12, setf(0x0.0p+0f));
        const vf v55 = -v52;
        const vf v56 = self(v54, v55, v52);
        const vm v57 = ltf(setf(0x0.0p+0f), v13);
        const vm v59 = ltf(v13, setf(INFINITY));
        const vm v60 = andm(v57, v59);
        const vf v61 = self(v60, v56, v12);
        const vf v63 = v61 + c2;
        const vf v64 = v9 / v63;
        const vf v65 = v2 - v64;
        const vf v66 = v65 - v6;
        const vf v68 = v66 * c3;
        const vf v69 = v6 + v68;
        SAVE(0, v9);
        LARGEST(0, v9);
        SAVE(1, v12);
        LARGEST(1, v12);
        LARGEST(2, v2);
        stf(new_param + i, v69);
    )
}

static void pb23143b6cbffa75b(const hu_piece *w) {
    START(1)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v4 = v0 * c0;
        const vf v5 = v4 + v2;
        const vf v7 = v5 * c1;
        const vf v8 = p - v7;
        SAVE(0, v5);
        LARGEST(0, v5);
        stf(new_param + i, v8);
    )
}

static void pbdb6b4535ad28c0e(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v4 = READ(grad);
        const vf v6 = v4 * c0;
        const vf v8 = p * c1;
        const vf v9 = v6 + v8;
        const vf v10 = v9 - v0;
        const vf v12 = v10 * c2;
        const vf v13 = v0 + v12;
        const vf v15 = v1 * c3;
        const vf v16 = v9 * v9;
        const vf v18 = v16 * c4;
        const vf v19 = v15 + v18;
        const vm v20 = nef(v2, v2);
        const vf v21 = maxf(v2, v19);
        const vf v22 = self(v20, v2, v21);
        const vf v23 = sqrtv(v22);
        const vf v25 = v23 * c5;
        const vf v27 = v25 + c6;
        const vf v28 = v13 / v27;
        const vf v30 = maxf(c7, v28);
        const vf v32 = minf(c8, v30);
        const vf v34 = p * c9;
        const vf v36 = v32 * c10;
        const vf v37 = v34 - v36;
        SAVE(0, v13);
        LARGEST(0, v13);
        SAVE(1, v19);
        LARGEST(1, v19);
        SAVE(2, v22);
        LARGEST(2, v22);
        stf(new_param + i, v37);
    )
}

static void pc5f07d0c178b1197(const hu_piece *w) {
    MEASURE(0)
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v1 = READ(grad);
        TERM(0, p);
        TERM(1, v1);
    )
}

static void pc7c98a9cb5952802(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v5 = READ(grad);
        const vf v21 = v5 * c0;
        const vf v23 = p * c1;
        const vf v24 = v21 + v23;
        const vf v25 = v24 - v0;
        const vf v27 = v25 * c2;
        const vf v28 = v0 + v27;
        const vf v30 = v1 * c3;
        const vf v31 = v24 * v24;
        const vf v33 = v31 * c4;
        const vf v34 = v30 + v33;
        const vm v35 = nef(v2, v2);
        const vf v36 = maxf(v2, v34);
        const vf v37 = self(v35, v2, v36);
        const vf v38 = sqrtv(v37);
        const vf v40 = v38 * c5;
        const vf v42 = v40 + c6;
        const vf v43 = v28 / v42;
        const vf v45 = maxf(c7, v43);
        const vf v47 = minf(c8, v45);
        const vf v49 = p * c9;
        const vf v51 = v47 * c10;
        const vf v52 = v49 - v51;
        SAVE(0, v28);
        LARGEST(0, v28);
        SAVE(1, v34);
        LARGEST(1, v34);
        SAVE(2, v37);
        LARGEST(2, v37);
        stf(new_param + i, v52);
    )
}

static void pcddd22e85f4b8481(const hu_piece *w) {
    START(1)
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf row0 = setf(w->c[0]);
    const vf row1 = setf(w->c[1]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v4 = p * c2;
        const vf v5 = v2 + v4;
        const vf v7 = p * c3;
        const vf v9 = v5 * row0;
        const vf v10 = ldf(w->column[0] + i);
        const vf v11 = v9 * v10;
        const vf v13 = v11 * c4;
        const vf v14 = v13 - v0;
        const vf v16 = v14 * c5;
        const vf v17 = v0 + v16;
        const vf v19 = v17 * row1;
        const vf v20 = ldf(w->column[1] + i);
        const vf v21 = v19 * v20;
        const vf v23 = v21 * c6;
        const vf v24 = v7 - v23;
        SAVE(0, v17);
        LARGEST(0, v17);
        stf(new_param + i, v24);
    )
}

static void pd384bbaef5be8ef8(const hu_piece *w) {
    MEASURE(0)
    MEASURE_EACH_VECTOR(READ_GRAD,
        const vf v0 = READ(grad);
        TERM(0, v0);
    )
}

static void pd653efd32cfd1108(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v1 = READ(grad);
        const vf v3 = p * c0;
        const vf v4 = v1 + v3;
        const vf v6 = p * c1;
        const vf v8 = v4 - setf(0x0.0p+0f);
        const vf v10 = v8 * c2;
        const vf v11 = setf(0x0.0p+0f) + v10;
        const vf v13 = v4 * v4;
        const vf v15 = v13 * c4;
        const vf v16 = c3 + v15;
        const vf v17 = sqrtv(v16);
        const vf v19 = v17 * c5;
        const vf v21 = v19 + c6;
        const vf v23 = v11 / c7;
        const vf v24 = v23 / v21;
        const vf v26 = maxf(c8, v24);
        const vf v28 = minf(c9, v26);
        const vf v30 = v28 * c10;
        const vf v31 = v6 - v30;
        SAVE(0, v11);
        LARGEST(0, v11);
        SAVE(1, v16);
        LARGEST(1, v16);
        stf(new_param + i, v31);
    )
}

static void pe000224ce871781d(const hu_piece *w) {
    MEASURE(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    vi top0 = seti(0);
    vi top1 = seti(0);
    vi top2 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD,
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = READ(grad);
        const vf v3 = v2 - v0;
        const vf v5 = v3 * c0;
        const vf v6 = v0 + v5;
        const vf v7 = v2 * v2;
        const vf v9 = v1 * c1;
        const vf v11 = v7 * c2;
        const vf v12 = v9 + v11;
        LARGEST_TERM(0, v2);
        LARGEST_TERM(1, v6);
        LARGEST_TERM(2, v12);
    )
    LARGEST_OF(0);
    LARGEST_OF(1);
    LARGEST_OF(2);
}

static void pe8c572f10cab8f52(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v7 = v6 - v0;
        const vf v9 = v7 * c1;
        const vf v10 = v0 + v9;
        const vf v12 = v1 * c2;
        const vf v13 = v6 * v6;
        const vf v15 = v13 * c3;
        const vf v16 = v12 + v15;
        const vf v17 = sqrtv(v16);
        const vf v19 = v17 * c4;
        const vf v21 = v19 + c5;
        const vf v22 = v10 / v21;
        const vf v24 = maxf(c6, v22);
        const vf v26 = minf(c7, v24);
        const vf v28 = p * c8;
        const vf v30 = v26 * c9;
        const vf v31 = v28 - v30;
        SAVE(0, v10);
        LARGEST(0, v10);
        SAVE(1, v16);
        LARGEST(1, v16);
        stf(new_param + i, v31);
    )
}

static void pf098652f354df8c2(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v5 = READ(grad);
        const vf v21 = v5 * c0;
        const vf v22 = v21 - v0;
        const vf v24 = v22 * c1;
        const vf v25 = v0 + v24;
        const vf v27 = v1 * c2;
        const vf v28 = v21 * v21;
        const vf v30 = v28 * c3;
        const vf v31 = v27 + v30;
        const vm v32 = nef(v2, v2);
        const vf v33 = maxf(v2, v31);
        const vf v34 = self(v32, v2, v33);
        const vf v35 = sqrtv(v34);
        const vf v37 = v35 * c4;
        const vf v39 = v37 + c5;
        const vf v40 = v25 / v39;
        const vf v42 = maxf(c6, v40);
        const vf v44 = minf(c7, v42);
        const vf v46 = p * c8;
        const vf v48 = v44 * c9;
        const vf v49 = v46 - v48;
        SAVE(0, v25);
        LARGEST(0, v25);
        SAVE(1, v31);
        LARGEST(1, v31);
        SAVE(2, v34);
        LARGEST(2, v34);
        stf(new_param + i, v49);
    )
}

static void pf4172b202dba4639(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v8 = p * c1;
        const vf v9 = v6 - v0;
        const vf v11 = v9 * c2;
        const vf v12 = v0 + v11;
        const vf v14 = v1 * c3;
        const vf v15 = v6 * v6;
        const vf v17 = v15 * c4;
        const vf v18 = v14 + v17;
        const vf v19 = sqrtv(v18);
        const vf v21 = v19 * c5;
        const vf v23 = v21 + c6;
        const vf v25 = v12 / c7;
        const vf v26 = v25 / v23;
        const vf v28 = maxf(c8, v26);
        const vf v30 = minf(c9, v28);
        const vf v32 = v30 * c10;
        const vf v33 = v8 - v32;
        SAVE(0, v12);
        LARGEST(0, v12);
        SAVE(1, v18);
        LARGEST(1, v18);
        stf(new_param + i, v33);
    )
}

static void pfae9150672c1c175(const hu_piece *w) {
    MEASURE(0)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    vi top0 = seti(0);
    vi top1 = seti(0);
    vi top2 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v1 = READ(grad);
        const vf v3 = p * c0;
        const vf v4 = v1 + v3;
        const vf v6 = v4 - setf(0x0.0p+0f);
        const vf v8 = v6 * c1;
        const vf v9 = setf(0x0.0p+0f) + v8;
        const vf v11 = v4 * v4;
        const vf v13 = v11 * c3;
        const vf v14 = c2 + v13;
        LARGEST_TERM(0, v1);
        LARGEST_TERM(1, v9);
        LARGEST_TERM(2, v14);
    )
    LARGEST_OF(0);
    LARGEST_OF(1);
    LARGEST_OF(2);
}

static const hu_program table[] = {
    {0x03d8fdcb2727c609u, p03d8fdcb2727c609},
    {0x0be2c05161ef3564u, p0be2c05161ef3564},
    {0x18b12ec5c3c745ebu, p18b12ec5c3c745eb},
    {0x1e3891705edf563au, p1e3891705edf563a},
    {0x2aba88c3c6ea299du, p2aba88c3c6ea299d},
    {0x31d30db970a40c10u, p31d30db970a40c10},
    {0x3491918b955054a6u, p3491918b955054a6},
    {0x3a7d8b97671faee5u, p3a7d8b97671faee5},
    {0x40a335c1c6b77c57u, p40a335c1c6b77c57},
    {0x4aa12c651e3442c9u, p4aa12c651e3442c9},
    {0x5335c58038b0affau, p5335c58038b0affa},
    {0x58300b9d70f224b6u, p58300b9d70f224b6},
    {0x5d6a8e25072b7f21u, p5d6a8e25072b7f21},
    {0x67b0d230bc25dfbau, p67b0d230bc25dfba},
    {0x73c5177298ec2b6du, p73c5177298ec2b6d},
    {0x76bac5fc0e95fd77u, p76bac5fc0e95fd77},
    {0x785a4b066a7d2cb7u, p785a4b066a7d2cb7},
    {0x7daa22959f5c057du, p7daa22959f5c057d},
    {0x8576c47ca2bfc420u, p8576c47ca2bfc420},
    {0x8c0fc14d5f9beddeu, p8c0fc14d5f9bedde},
    {0x9d31862db63a0763u, p9d31862db63a0763},
    {0xa26115642395e2b2u, pa26115642395e2b2},
    {0xaf3aaadc744ceae2u, paf3aaadc744ceae2},
    {0xb23143b6cbffa75bu, pb23143b6cbffa75b},
    {0xbdb6b4535ad28c0eu, pbdb6b4535ad28c0e},
    {0xc5f07d0c178b1197u, pc5f07d0c178b1197},
    {0xc7c98a9cb5952802u, pc7c98a9cb5952802},
    {0xcddd22e85f4b8481u, pcddd22e85f4b8481},
    {0xd384bbaef5be8ef8u, pd384bbaef5be8ef8},
    {0xd653efd32cfd1108u, pd653efd32cfd1108},
    {0xe000224ce871781du, pe000224ce871781d},
    {0xe8c572f10cab8f52u, pe8c572f10cab8f52},
    {0xf098652f354df8c2u, pf098652f354df8c2},
    {0xf4172b202dba4639u, pf4172b202dba4639},
    {0xfae9150672c1c175u, pfae9150672c1c175},
};
#endif

#if HU_PART == 2

static void p0554684c65312600(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v7 = v1 * c1;
        const vf v8 = v3 * v3;
        const vf v10 = v8 * c2;
        const vf v11 = v7 + v10;
        LARGEST(0, v0);
        SAVE(1, v11);
        LARGEST(1, v11);
        stf(new_param + i, v5);
    )
}

static void p13515734b4fb4714(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v8 = p * c1;
        const vf v9 = v6 - v0;
        const vf v11 = v9 * c2;
        const vf v12 = v0 + v11;
        const vf v14 = v1 * c3;
        const vf v15 = v12 * v12;
        const vf v17 = v15 * c4;
        const vf v18 = v14 + v17;
        const vf v20 = v18 + c5;
        const vf v22 = v12 / c6;
        const vf v23 = sqrtv(v20);
        const vf v25 = v23 * c7;
        const vf v26 = v22 / v25;
        const vf v28 = v26 * c8;
        const vf v29 = v8 - v28;
        SAVE(0, v12);
        LARGEST(0, v12);
        SAVE(1, v20);
        LARGEST(1, v20);
        stf(new_param + i, v29);
    )
}

static void p1a73b339a28a4493(const hu_piece *w) {
    START(1)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v4 = p * c0;
        const vf v6 = v2 * c1;
        const vf v7 = v6 * v6;
        const vf v9 = v7 + setf(0x1.0000000000000p+0f);
        const vf v10 = v2 / v9;
        const vf v12 = v0 * c2;
        const vf v14 = v10 * c3;
        const vf v15 = v12 + v14;
        const vf v17 = v15 * c4;
        const vf v18 = v4 - v17;
        SAVE(0, v15);
        LARGEST(0, v15);
        stf(new_param + i, v18);
    )
}

static void p2374e5b23f14c9f3(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vm c5 = nef(setf(w->c[5]), setf(0.0f));
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    const vf c11 = setf(w->c[11]);
    const vf c12 = setf(w->c[12]);
    const vm c13 = nef(setf(w->c[13]), setf(0.0f));
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v5 = READ(grad);
        const vf v7 = p * c0;
        const vf v8 = v5 + v7;
        const vf v10 = p * c1;
        const vf v11 = v8 - v0;
        const vf v13 = v11 * c2;
        const vf v14 = v0 + v13;
        const vf v16 = v1 * c3;
        const vf v17 = v8 * v8;
        const vf v19 = v17 * c4;
        const vf v20 = v16 + v19;
        const vf v25 = v14 * c7;
        const vf v26 = sqrtv(v20);
        const vf v28 = v26 * c8;
        const vf v30 = v28 + c9;
        const vf v32 = v14 / c10;
        const vf v33 = v32 / v30;
        const vf v35 = maxf(c11, v33);
        const vf v37 = minf(c12, v35);
        const vf v38 = v37 * c6;
        const vf v39 = self(c5, v25, v38);
        const vf v40 = self(c5, v1, v20);
        const vf v58 = self(c13, setf(0x0.0p+0f), v14);
        const vf v59 = v10 - v39;
        CHECK(v5);
        SAVE(0, v58);
        LARGEST(0, v58);
        SAVE(1, v40);
        LARGEST(1, v40);
        stf(new_param + i, v59);
    )
}

static void p2cb9d4f0b6392031(const hu_piece *w) {
    MEASURE(0)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    vi top0 = seti(0);
    vi top1 = seti(0);
    vi top2 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD,
        const vf v0 = READ(grad);
        const vf v2 = v0 - setf(0x0.0p+0f);
        const vf v4 = v2 * c0;
        const vf v5 = setf(0x0.0p+0f) + v4;
        const vf v7 = v0 * v0;
        const vf v9 = v7 * c2;
        const vf v10 = c1 + v9;
        LARGEST_TERM(0, v0);
        LARGEST_TERM(1, v5);
        LARGEST_TERM(2, v10);
    )
    LARGEST_OF(0);
    LARGEST_OF(1);
    LARGEST_OF(2);
}

static void p32d45b2cc1c03444(const hu_piece *w) {
    START(0)
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf row0 = setf(w->c[0]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v1 = READ(grad);
        const vf v3 = p * c1;
        const vf v4 = v1 + v3;
        const vf v6 = v4 * row0;
        const vf v7 = ldf(w->column[0] + i);
        const vf v8 = v6 * v7;
        const vf v10 = v8 * c2;
        const vf v12 = v10 * c3;
        const vf v14 = p * c4;
        const vf v15 = v14 - v12;
        CHECK(v1);
        stf(new_param + i, v15);
    )
}

static void p36818c5364c5f480(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v4 = READ(grad);
        const vf v6 = p * c0;
        const vf v7 = v4 - v0;
        const vf v9 = v7 * c1;
        const vf v10 = v0 + v9;
        const vf v12 = v1 * c2;
        const vf v13 = v4 * v4;
        const vf v15 = v13 * c3;
        const vf v16 = v12 + v15;
        const vf v17 = sqrtv(v16);
        const vf v19 = v17 + c4;
        const vf v21 = setf(0x1.0000000000000p+0f) / v19;
        const vf v23 = v21 * c5;
        const vf v25 = v2 * c6;
        const vf v27 = v23 * c7;
        const vf v28 = v25 + v27;
        const vm v29 = nef(v23, v23);
        const vf v30 = minf(v23, v28);
        const vf v31 = self(v29, v23, v30);
        const vf v32 = v31 * v10;
        const vf v34 = maxf(c8, v32);
        const vf v36 = minf(c9, v34);
        const vf v37 = v6 - v36;
        SAVE(0, v10);
        LARGEST(0, v10);
        SAVE(1, v16);
        LARGEST(1, v16);
        SAVE(2, v28);
        LARGEST(2, v28);
        stf(new_param + i, v37);
    )
}

static void p3d3c31cc81695386(const hu_piece *w) {
    MEASURE(0)
    const vf row0 = setf(w->c[0]);
    MEASURE_EACH_VECTOR(READ_GRAD,
        const vf v0 = READ(grad);
        const vf v2 = v0 * row0;
        const vf v3 = ldf(w->column[0] + i);
        const vf v4 = v2 * v3;
        TERM(0, v4);
    )
}

static void p45a07f9535c5366d(const hu_piece *w) {
    START(0)
    const vf c0 = setf(w->c[0]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v1 = READ(grad);
        const vf v3 = v1 * c0;
        const vf v4 = p - v3;
        CHECK(v1);
        stf(new_param + i, v4);
    )
}

static void p4adb96329b48557e(const hu_piece *w) {
    MEASURE(0)
    const vf c0 = setf(w->c[0]);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v1 = READ(grad);
        const vf v2 = v1 * v1;
        const vf v4 = v2 + c0;
        TERM(0, v4);
        TERM(1, p);
    )
}

static void p5458c3c0f48936ca(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v4 = READ(grad);
        const vf v6 = p * c0;
        const vf v7 = v4 - v0;
        const vf v9 = v7 * c1;
        const vf v10 = v0 + v9;
        const vf v12 = v1 * c2;
        const vf v13 = v4 * v4;
        const vf v15 = v13 * c3;
        const vf v16 = v12 + v15;
        const vm v17 = nef(v2, v2);
        const vf v18 = maxf(v2, v16);
        const vf v19 = self(v17, v2, v18);
        const vf v20 = sqrtv(v19);
        const vf v22 = v20 + c4;
        const vf v24 = setf(0x1.0000000000000p+0f) / v22;
        const vf v26 = v24 * c5;
        const vf v28 = maxf(c6, v26);
        const vf v30 = minf(c7, v28);
        const vf v31 = v30 * v10;
        const vf v32 = v6 - v31;
        SAVE(0, v10);
        LARGEST(0, v10);
        SAVE(1, v16);
        LARGEST(1, v16);
        SAVE(2, v19);
        LARGEST(2, v19);
        stf(new_param + i, v32);
    )
}

static void p58c7692796e9c6f4(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = v3 * c0;
        const vf v7 = p * c1;
        const vf v8 = v5 + v7;
        const vf v9 = v8 - v0;
        const vf v11 = v9 * c2;
        const vf v12 = v0 + v11;
        const vf v14 = v1 * c3;
        const vf v15 = v8 * v8;
        const vf v17 = v15 * c4;
        const vf v18 = v14 + v17;
        const vf v19 = sqrtv(v18);
        const vf v21 = v19 * c5;
        const vf v23 = v21 + c6;
        const vf v24 = v12 / v23;
        const vf v26 = maxf(c7, v24);
        const vf v28 = minf(c8, v26);
        const vf v30 = p * c9;
        const vf v32 = v28 * c10;
        const vf v33 = v30 - v32;
        SAVE(0, v12);
        LARGEST(0, v12);
        SAVE(1, v18);
        LARGEST(1, v18);
        stf(new_param + i, v33);
    )
}

static void p5eb5fc296cc26d9d(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 - v0;
        const vf v8 = v6 * c1;
        const vf v9 = v0 + v8;
        const vf v11 = v1 * c2;
        const vf v12 = v9 * v9;
        const vf v14 = v12 * c3;
        const vf v15 = v11 + v14;
        const vf v17 = v15 + c4;
        const vf v19 = v9 / c5;
        const vf v20 = sqrtv(v17);
        const vf v22 = v20 * c6;
        const vf v23 = v19 / v22;
        const vf v25 = v23 * c7;
        const vf v26 = v5 - v25;
        SAVE(0, v9);
        LARGEST(0, v9);
        SAVE(1, v17);
        LARGEST(1, v17);
        stf(new_param + i, v26);
    )
}

static void p697fcaeee7e5be35(const hu_piece *w) {
    START(1)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v4 = p * c0;
        const vf v5 = v2 + v4;
        const vf v7 = v0 * c1;
        const vf v9 = v5 * c2;
        const vf v10 = v7 + v9;
        const vf v12 = v10 * c3;
        const vf v13 = p - v12;
        SAVE(0, v10);
        LARGEST(0, v10);
        stf(new_param + i, v13);
    )
}

static void p73d551e91bea5c25(const hu_piece *w) {
    MEASURE(1)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    vi top2 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v4 = p * c0;
        const vf v5 = v2 + v4;
        const vf v6 = v5 * v5;
        const vf v8 = v6 + c1;
        const vf v9 = v8 - v0;
        const vf v11 = v9 * c2;
        const vf v12 = v0 + v11;
        const vf v13 = sqrtv(v12);
        const vf v15 = maxf(setf(0x1.b38fb80000000p-127f), v13);
        const vf v16 = v5 / v15;
        TERM(0, v16);
        TERM(1, p);
        LARGEST_TERM(2, v12);
    )
    LARGEST_OF(2);
}

static void p774fd6710351eaab(const hu_piece *w) {
    MEASURE(1)
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf row0 = setf(w->c[0]);
    MEASURE_EACH_VECTOR(READ_GRAD,
        const vf v0 = ldf(state[0] + i);
        const vf v1 = READ(grad);
        const vf v3 = v1 * row0;
        const vf v4 = ldf(w->column[0] + i);
        const vf v5 = v3 * v4;
        const vf v7 = v5 * c1;
        const vf v8 = v7 - v0;
        const vf v10 = v8 * c2;
        const vf v11 = v0 + v10;
        const vf v12 = v7 - v11;
        const vf v13 = v12 * v12;
        const vf v15 = v13 + c3;
        TERM(0, v15);
    )
}

static void p7caa62a46235a099(const hu_piece *w) {
    START(1)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v4 = v0 * c0;
        const vf v6 = v2 * c1;
        const vf v7 = v4 + v6;
        const vf v9 = v7 * c2;
        const vf v10 = v2 + v9;
        const vf v12 = v10 * c3;
        const vf v13 = p - v12;
        SAVE(0, v7);
        LARGEST(0, v7);
        stf(new_param + i, v13);
    )
}

static void p83281ca00d1079a7(const hu_piece *w) {
    MEASURE(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    vi top0 = seti(0);
    vi top1 = seti(0);
    vi top2 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD,
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = READ(grad);
        const vf v3 = v2 * v2;
        const vf v5 = v1 * c0;
        const vf v7 = v3 * c1;
        const vf v8 = v5 + v7;
        const vf v9 = v2 - v0;
        const vf v11 = v9 * c2;
        const vf v12 = v0 + v11;
        LARGEST_TERM(0, v2);
        LARGEST_TERM(1, v12);
        LARGEST_TERM(2, v8);
    )
    LARGEST_OF(0);
    LARGEST_OF(1);
    LARGEST_OF(2);
}

static void p85d6f59d90a59e23(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = sqrtv(v1);
        const vf v8 = maxf(c1, v6);
        const vf v9 = v3 / v8;
        const vf v11 = maxf(c2, v9);
        const vf v13 = minf(c3, v11);
        const vf v14 = v13 - v0;
        const vf v16 = v14 * c4;
        const vf v17 = v0 + v16;
        const vf v19 = v17 * c5;
        const vf v20 = v5 - v19;
        const vf v22 = v1 * c6;
        const vf v23 = v3 * v3;
        const vf v25 = v23 * c7;
        const vf v26 = v22 + v25;
        SAVE(0, v17);
        LARGEST(0, v17);
        SAVE(1, v26);
        LARGEST(1, v26);
        stf(new_param + i, v20);
    )
}

static void p913c7774eccfced6(const hu_piece *w) {
    MEASURE(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    vi top0 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD,
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = READ(grad);
        const vf v3 = v2 * v2;
        const vf v5 = v3 + c0;
        const vf v6 = v5 - v0;
        const vf v8 = v6 * c1;
        const vf v9 = v0 + v8;
        const vf v10 = sqrtv(v9);
        const vf v12 = maxf(setf(0x1.b38fb80000000p-127f), v10);
        const vf v13 = v2 / v12;
        const vf v15 = v13 * c2;
        const vf v17 = v15 * c3;
        const vf v18 = v17 - v1;
        const vf v20 = v18 * c4;
        const vf v21 = v1 + v20;
        LARGEST_TERM(0, v21);
    )
    LARGEST_OF(0);
}

static void p9d9cb5c24be60ca1(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 - v0;
        const vf v8 = v6 * c1;
        const vf v9 = v0 + v8;
        const vf v10 = v3 - v9;
        const vf v12 = v1 * c2;
        const vf v13 = v10 * v10;
        const vf v15 = v13 * c3;
        const vf v16 = v12 + v15;
        const vf v18 = v16 + c4;
        const vf v19 = sqrtv(v18);
        const vf v21 = v19 * c5;
        const vf v22 = v21 + c4;
        const vf v24 = v9 / c6;
        const vf v25 = v24 / v22;
        const vf v27 = v25 * c7;
        const vf v28 = v5 - v27;
        SAVE(0, v9);
        LARGEST(0, v9);
        SAVE(1, v18);
        LARGEST(1, v18);
        stf(new_param + i, v28);
    )
}

static void pa2932e3d5915df64(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v4 = READ(grad);
        const vf v6 = v4 * c0;
        const vf v7 = v6 - v0;
        const vf v9 = v7 * c1;
        const vf v10 = v0 + v9;
        const vf v12 = v1 * c2;
        const vf v13 = v6 * v6;
        const vf v15 = v13 * c3;
        const vf v16 = v12 + v15;
        const vm v17 = nef(v2, v2);
        const vf v18 = maxf(v2, v16);
        const vf v19 = self(v17, v2, v18);
        const vf v20 = sqrtv(v19);
        const vf v22 = v20 * c4;
        const vf v24 = v22 + c5;
        const vf v25 = v10 / v24;
        const vf v27 = maxf(c6, v25);
        const vf v29 = minf(c7, v27);
        const vf v31 = p * c8;
        const vf v33 = v29 * c9;
        const vf v34 = v31 - v33;
        SAVE(0, v10);
        LARGEST(0, v10);
        SAVE(1, v16);
        LARGEST(1, v16);
        SAVE(2, v19);
        LARGEST(2, v19);
        stf(new_param + i, v34);
    )
}

static void paf4d3973be1747d8(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v1 = READ(grad);
        const vf v3 = p * c0;
        const vf v5 = v1 - setf(0x0.0p+0f);
        const vf v7 = v5 * c1;
        const vf v8 = setf(0x0.0p+0f) + v7;
        const vf v11 = v1 * v1;
        const vf v13 = v11 * c3;
        const vf v14 = c2 + v13;
        const vf v15 = sqrtv(v14);
        const vf v17 = v15 * c4;
        const vf v19 = v17 + c5;
        const vf v21 = v8 / c6;
        const vf v22 = v21 / v19;
        const vf v24 = maxf(c7, v22);
        const vf v26 = minf(c8, v24);
        const vf v28 = v26 * c9;
        const vf v30 = v28 * c10;
        const vf v31 = v3 - v30;
        SAVE(0, v8);
        LARGEST(0, v8);
        SAVE(1, v14);
        LARGEST(1, v14);
        stf(new_param + i, v31);
    )
}

static void pb4555fa39eec8dc1(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v8 = p * c1;
        const vf v10 = v0 * c2;
        const vf v12 = v1 * c3;
        const vf v13 = v10 - v12;
        const vf v14 = v13 - v6;
        const vf v15 = v0 * c3;
        const vf v16 = v1 * c2;
        const vf v17 = v15 + v16;
        const vf v19 = v14 * c4;
        const vf v20 = v8 + v19;
        SAVE(0, v14);
        LARGEST(0, v14);
        SAVE(1, v17);
        LARGEST(1, v17);
        stf(new_param + i, v20);
    )
}

static void pc149b1ab9cf791d0(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v4 = READ(grad);
        const vf v6 = p * c0;
        const vf v7 = v4 + v6;
        const vf v8 = v7 - v0;
        const vf v10 = v8 * c1;
        const vf v11 = v0 + v10;
        const vf v13 = v1 * c2;
        const vf v14 = v7 * v7;
        const vf v16 = v14 * c3;
        const vf v17 = v13 + v16;
        const vm v18 = nef(v2, v2);
        const vf v19 = maxf(v2, v17);
        const vf v20 = self(v18, v2, v19);
        const vf v21 = sqrtv(v20);
        const vf v23 = v21 * c4;
        const vf v25 = v23 + c5;
        const vf v26 = v11 / v25;
        const vf v28 = maxf(c6, v26);
        const vf v30 = minf(c7, v28);
        const vf v32 = p * c8;
        const vf v34 = v30 * c9;
        const vf v35 = v32 - v34;
        SAVE(0, v11);
        LARGEST(0, v11);
        SAVE(1, v17);
        LARGEST(1, v17);
        SAVE(2, v20);
        LARGEST(2, v20);
        stf(new_param + i, v35);
    )
}

static void pc6968c8e41faa106(const hu_piece *w) {
    MEASURE(0)
    const vf c0 = setf(w->c[0]);
    vi top0 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v1 = READ(grad);
        const vf v3 = p * c0;
        const vf v4 = v1 + v3;
        LARGEST_TERM(0, v4);
    )
    LARGEST_OF(0);
}

static void pc9cc095247dad9d7(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v5 = READ(grad);
        const vf v17 = v5 * c0;
        const vf v19 = p * c1;
        const vf v20 = v17 + v19;
        const vf v21 = v20 - v0;
        const vf v23 = v21 * c2;
        const vf v24 = v0 + v23;
        const vf v26 = v1 * c3;
        const vf v27 = v20 * v20;
        const vf v29 = v27 * c4;
        const vf v30 = v26 + v29;
        const vm v31 = nef(v2, v2);
        const vf v32 = maxf(v2, v30);
        const vf v33 = self(v31, v2, v32);
        const vf v34 = sqrtv(v33);
        const vf v36 = v34 * c5;
        const vf v38 = v36 + c6;
        const vf v39 = v24 / v38;
        const vf v41 = maxf(c7, v39);
        const vf v43 = minf(c8, v41);
        const vf v45 = p * c9;
        const vf v47 = v43 * c10;
        const vf v48 = v45 - v47;
        SAVE(0, v24);
        LARGEST(0, v24);
        SAVE(1, v30);
        LARGEST(1, v30);
        SAVE(2, v33);
        LARGEST(2, v33);
        stf(new_param + i, v48);
    )
}

static void pce7d91187b17cb51(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vm c5 = nef(setf(w->c[5]), setf(0.0f));
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    const vf c11 = setf(w->c[11]);
    const vf c12 = setf(w->c[12]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v5 = READ(grad);
        const vf v7 = p * c0;
        const vf v8 = v5 + v7;
        const vf v10 = p * c1;
        const vf v11 = v8 - v0;
        const vf v13 = v11 * c2;
        const vf v14 = v0 + v13;
        const vf v16 = v1 * c3;
        const vf v17 = v8 * v8;
        const vf v19 = v17 * c4;
        const vf v20 = v16 + v19;
        const vf v25 = v14 * c7;
        const vf v26 = sqrtv(v20);
        const vf v28 = v26 * c8;
        const vf v30 = v28 + c9;
        const vf v32 = v14 / c10;
        const vf v33 = v32 / v30;
        const vf v35 = maxf(c11, v33);
        const vf v37 = minf(c12, v35);
        const vf v38 = v37 * c6;
        const vf v39 = self(c5, v25, v38);
        const vf v40 = self(c5, v1, v20);
        const vf v41 = v10 - v39;
        SAVE(0, v14);
        LARGEST(0, v14);
        SAVE(1, v40);
        LARGEST(1, v40);
        stf(new_param + i, v41);
    )
}

static void pd39a61aee8836cdd(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v8 = p * c1;
        const vf v9 = v6 * v6;
        const vf v11 = v9 + c2;
        const vf v12 = v11 - v1;
        const vf v14 = v12 * c3;
        const vf v15 = v1 + v14;
        const vf v16 = sqrtv(v15);
        const vf v18 = maxf(setf(0x1.b38fb80000000p-127f), v16);
        const vf v19 = v6 / v18;
        const vf v21 = v19 * c4;
        const vf v22 = v21 - v0;
        const vf v24 = v22 * c5;
        const vf v25 = v0 + v24;
        const vf v27 = v25 * c6;
        const vf v28 = v8 - v27;
        SAVE(0, v25);
        LARGEST(0, v25);
        SAVE(1, v15);
        LARGEST(1, v15);
        stf(new_param + i, v28);
    )
}

static void pd6b4bb0a2f160db3(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v4 = READ(grad);
        const vf v13 = v4 * c0;
        const vf v15 = p * c1;
        const vf v16 = v13 + v15;
        const vf v17 = v16 - v0;
        const vf v19 = v17 * c2;
        const vf v20 = v0 + v19;
        const vf v22 = v1 * c3;
        const vf v23 = v16 * v16;
        const vf v25 = v23 * c4;
        const vf v26 = v22 + v25;
        const vm v27 = nef(v2, v2);
        const vf v28 = maxf(v2, v26);
        const vf v29 = self(v27, v2, v28);
        const vf v30 = sqrtv(v29);
        const vf v32 = v30 * c5;
        const vf v34 = v32 + c6;
        const vf v35 = v20 / v34;
        const vf v37 = maxf(c7, v35);
        const vf v39 = minf(c8, v37);
        const vf v41 = p * c9;
        const vf v43 = v39 * c10;
        const vf v44 = v41 - v43;
        SAVE(0, v20);
        LARGEST(0, v20);
        SAVE(1, v26);
        LARGEST(1, v26);
        SAVE(2, v29);
        LARGEST(2, v29);
        stf(new_param + i, v44);
    )
}

static void pe585b44d203d5833(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vm c4 = nef(setf(w->c[4]), setf(0.0f));
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    const vf c11 = setf(w->c[11]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v5 = READ(grad);
        const vf v7 = p * c0;
        const vf v8 = v5 - v0;
        const vf v10 = v8 * c1;
        const vf v11 = v0 + v10;
        const vf v13 = v1 * c2;
        const vf v14 = v5 * v5;
        const vf v16 = v14 * c3;
        const vf v17 = v13 + v16;
        const vf v22 = v11 * c6;
        const vf v23 = sqrtv(v17);
        const vf v25 = v23 * c7;
        const vf v27 = v25 + c8;
        const vf v29 = v11 / c9;
        const vf v30 = v29 / v27;
        const vf v32 = maxf(c10, v30);
        const vf v34 = minf(c11, v32);
        const vf v35 = v34 * c5;
        const vf v36 = self(c4, v22, v35);
        const vf v37 = self(c4, v1, v17);
        const vf v43 = v7 - v36;
        SAVE(0, v11);
        LARGEST(0, v11);
        SAVE(1, v37);
        LARGEST(1, v37);
        stf(new_param + i, v43);
    )
}

static void pea8550cc8c147c34(const hu_piece *w) {
    START(1)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v4 = p * c0;
        const vf v5 = v2 + v4;
        const vf v7 = p * c1;
        const vf v8 = v0 - v5;
        const vf v10 = v8 * c2;
        const vf v11 = v5 + v10;
        const vf v13 = v11 * c3;
        const vf v14 = v7 - v13;
        SAVE(0, v11);
        LARGEST(0, v11);
        stf(new_param + i, v14);
    )
}

static void pf0d0de06190980ee(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    const vf c11 = setf(w->c[11]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v8 = p * c1;
        const vf v9 = v6 - v0;
        const vf v11 = v9 * c2;
        const vf v12 = v0 + v11;
        const vf v14 = v1 * c3;
        const vf v15 = v6 * v6;
        const vf v17 = v15 * c4;
        const vf v18 = v14 + v17;
        const vf v19 = sqrtv(v18);
        const vf v21 = v19 * c5;
        const vf v23 = v21 + c6;
        const vf v25 = v12 / c7;
        const vf v26 = v25 / v23;
        const vf v28 = maxf(c8, v26);
        const vf v30 = minf(c9, v28);
        const vf v32 = v30 * c10;
        const vf v34 = v32 * c11;
        const vf v35 = v8 - v34;
        SAVE(0, v12);
        LARGEST(0, v12);
        SAVE(1, v18);
        LARGEST(1, v18);
        stf(new_param + i, v35);
    )
}

static void pf64e8d57fdb5af8f(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    const vf c11 = setf(w->c[11]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 - v0;
        const vf v8 = v6 * c1;
        const vf v9 = v0 + v8;
        const vf v11 = v1 * c2;
        const vf v12 = v3 * v3;
        const vf v14 = v12 * c3;
        const vf v15 = v11 + v14;
        const vf v16 = v9 * v9;
        const vf v18 = v15 + c4;
        const vf v19 = v15 / v18;
        const vf v21 = v19 * c5;
        const vf v23 = v21 + setf(0x1.0000000000000p+0f);
        const vf v24 = v16 + c4;
        const vf v25 = v16 / v24;
        const vf v27 = v25 * c6;
        const vf v28 = v27 + setf(0x1.0000000000000p+0f);
        const vf v30 = v15 * c7;
        const vf v31 = v30 * v28;
        const vf v32 = sqrtv(v31);
        const vf v33 = v9 + v3;
        const vf v35 = v33 / c8;
        const vf v36 = v35 * v23;
        const vf v37 = v32 + c4;
        const vf v38 = v36 / v37;
        const vf v40 = maxf(c9, v38);
        const vf v42 = minf(c10, v40);
        const vf v44 = v42 * c11;
        const vf v45 = v5 - v44;
        SAVE(0, v9);
        LARGEST(0, v9);
        SAVE(1, v15);
        LARGEST(1, v15);
        stf(new_param + i, v45);
    )
}

static void pfba146f5203ab251(const hu_piece *w) {
    MEASURE(0)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v1 = READ(grad);
        const vf v3 = p * c0;
        const vf v4 = v1 + v3;
        const vf v5 = v4 * v4;
        const vf v7 = v5 + c1;
        TERM(0, v7);
        TERM(1, p);
    )
}

static const hu_program table[] = {
    {0x0554684c65312600u, p0554684c65312600},
    {0x13515734b4fb4714u, p13515734b4fb4714},
    {0x1a73b339a28a4493u, p1a73b339a28a4493},
    {0x2374e5b23f14c9f3u, p2374e5b23f14c9f3},
    {0x2cb9d4f0b6392031u, p2cb9d4f0b6392031},
    {0x32d45b2cc1c03444u, p32d45b2cc1c03444},
    {0x36818c5364c5f480u, p36818c5364c5f480},
    {0x3d3c31cc81695386u, p3d3c31cc81695386},
    {0x45a07f9535c5366du, p45a07f9535c5366d},
    {0x4adb96329b48557eu, p4adb96329b48557e},
    {0x5458c3c0f48936cau, p5458c3c0f48936ca},
    {0x58c7692796e9c6f4u, p58c7692796e9c6f4},
    {0x5eb5fc296cc26d9du, p5eb5fc296cc26d9d},
    {0x697fcaeee7e5be35u, p697fcaeee7e5be35},
    {0x73d551e91bea5c25u, p73d551e91bea5c25},
    {0x774fd6710351eaabu, p774fd6710351eaab},
    {0x7caa62a46235a099u, p7caa62a46235a099},
    {0x83281ca00d1079a7u, p83281ca00d1079a7},
    {0x85d6f59d90a59e23u, p85d6f59d90a59e23},
    {0x913c7774eccfced6u, p913c7774eccfced6},
    {0x9d9cb5c24be60ca1u, p9d9cb5c24be60ca1},
    {0xa2932e3d5915df64u, pa2932e3d5915df64},
    {0xaf4d3973be1747d8u, paf4d3973be1747d8},
    {0xb4555fa39eec8dc1u, pb4555fa39eec8dc1},
    {0xc149b1ab9cf791d0u, pc149b1ab9cf791d0},
    {0xc6968c8e41faa106u, pc6968c8e41faa106},
    {0xc9cc095247dad9d7u, pc9cc095247dad9d7},
    {0xce7d91187b17cb51u, pce7d91187b17cb51},
    {0xd39a61aee8836cddu, pd39a61aee8836cdd},
    {0xd6b4bb0a2f160db3u, pd6b4bb0a2f160db3},
    {0xe585b44d203d5833u, pe585b44d203d5833},
    {0xea8550cc8c147c34u, pea8550cc8c147c34},
    {0xf0d0de06190980eeu, pf0d0de06190980ee},
    {0xf64e8d57fdb5af8fu, pf64e8d57fdb5af8f},
    {0xfba146f5203ab251u, pfba146f5203ab251},
};
#endif

#if HU_PART == 3

static void p067c7144d9f1b773(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v7 = v6 - v0;
        const vf v9 = v7 * c1;
        const vf v10 = v0 + v9;
        const vf v12 = v1 * c2;
        const vf v13 = v6 * v6;
        const vf v15 = v13 * c3;
        const vf v16 = v12 + v15;
        const vf v17 = sqrtv(v16);
        const vf v19 = v17 * c4;
        const vf v21 = v19 + c5;
        const vf v23 = v10 / c6;
        const vf v24 = v23 / v21;
        const vf v26 = maxf(c7, v24);
        const vf v28 = minf(c8, v26);
        const vf v30 = p * c9;
        const vf v32 = v28 * c10;
        const vf v33 = v30 - v32;
        SAVE(0, v10);
        LARGEST(0, v10);
        SAVE(1, v16);
        LARGEST(1, v16);
        stf(new_param + i, v33);
    )
}

static void p1453ac609e3867a1(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vm c4 = nef(setf(w->c[4]), setf(0.0f));
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    const vf c11 = setf(w->c[11]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v5 = READ(grad);
        const vf v7 = p * c0;
        const vf v8 = v5 - v0;
        const vf v10 = v8 * c1;
        const vf v11 = v0 + v10;
        const vf v13 = v1 * c2;
        const vf v14 = v5 * v5;
        const vf v16 = v14 * c3;
        const vf v17 = v13 + v16;
        const vf v22 = v11 * c6;
        const vf v23 = sqrtv(v17);
        const vf v25 = v23 * c7;
        const vf v27 = v25 + c8;
        const vf v29 = v11 / c9;
        const vf v30 = v29 / v27;
        const vf v32 = maxf(c10, v30);
        const vf v34 = minf(c11, v32);
        const vf v35 = v34 * c5;
        const vf v36 = self(c4, v22, v35);
        const vf v37 = self(c4, v1, v17);
        const vf v38 = v7 - v36;
        SAVE(0, v11);
        LARGEST(0, v11);
        SAVE(1, v37);
        LARGEST(1, v37);
        stf(new_param + i, v38);
    )
}

static void p1a91f83c3c09e3f1(const hu_piece *w) {
    MEASURE(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    vi top0 = seti(0);
    vi top1 = seti(0);
    vi top2 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v7 = v6 - v0;
        const vf v9 = v7 * c1;
        const vf v10 = v0 + v9;
        const vf v11 = v6 * v6;
        const vf v13 = v1 * c2;
        const vf v15 = v11 * c3;
        const vf v16 = v13 + v15;
        LARGEST_TERM(0, v3);
        LARGEST_TERM(1, v10);
        LARGEST_TERM(2, v16);
    )
    LARGEST_OF(0);
    LARGEST_OF(1);
    LARGEST_OF(2);
}

static void p26fdfd0cb017ac11(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vm c5 = nef(setf(w->c[5]), setf(0.0f));
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    const vf c11 = setf(w->c[11]);
    const vf c12 = setf(w->c[12]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v5 = READ(grad);
        const vf v7 = p * c0;
        const vf v8 = v5 + v7;
        const vf v10 = p * c1;
        const vf v11 = v8 - v0;
        const vf v13 = v11 * c2;
        const vf v14 = v0 + v13;
        const vf v16 = v1 * c3;
        const vf v17 = v8 * v8;
        const vf v19 = v17 * c4;
        const vf v20 = v16 + v19;
        const vf v25 = v14 * c7;
        const vf v26 = sqrtv(v20);
        const vf v28 = v26 * c8;
        const vf v30 = v28 + c9;
        const vf v32 = v14 / c10;
        const vf v33 = v32 / v30;
        const vf v35 = maxf(c11, v33);
        const vf v37 = minf(c12, v35);
        const vf v38 = v37 * c6;
        const vf v39 = self(c5, v25, v38);
        const vf v40 = self(c5, v1, v20);
        const vf v46 = v10 - v39;
        SAVE(0, v14);
        LARGEST(0, v14);
        SAVE(1, v40);
        LARGEST(1, v40);
        stf(new_param + i, v46);
    )
}

static void p2e5f3dd7670feb9a(const hu_piece *w) {
    START(1)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v4 = p * c0;
        const vf v5 = v2 + v4;
        const vf v6 = v5 * v5;
        const vf v8 = v6 + c1;
        const vf v9 = v8 - v0;
        const vf v11 = v9 * c2;
        const vf v12 = v0 + v11;
        const vf v13 = sqrtv(v12);
        const vf v15 = maxf(setf(0x1.b38fb80000000p-127f), v13);
        const vf v16 = v5 / v15;
        const vf v18 = v16 * c3;
        const vf v20 = v18 * c4;
        const vf v22 = p * c5;
        const vf v23 = v22 - v20;
        SAVE(0, v12);
        LARGEST(0, v12);
        stf(new_param + i, v23);
    )
}

static void p32dcce2b6160d5ab(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v4 = READ(grad);
        const vf v5 = v4 - v0;
        const vf v7 = v5 * c0;
        const vf v8 = v0 + v7;
        const vf v10 = v1 * c1;
        const vf v11 = v4 * v4;
        const vf v13 = v11 * c2;
        const vf v14 = v10 + v13;
        const vf v16 = v8 / c3;
        const vf v17 = sqrtv(v14);
        const vf v19 = v17 * c4;
        const vf v21 = v19 + c5;
        const vf v22 = v16 / v21;
        const vf v24 = maxf(c6, v22);
        const vf v26 = minf(c7, v24);
        const vf v27 = v26 * v2;
        const vf v28 = asf(absi(v27));
        const vf v30 = v28 * c8;
        const vf v32 = setf(0x1.0000000000000p+0f) - v30;
        const vf v33 = p * v32;
        const vf v34 = v33 - v27;
        SAVE(0, v8);
        LARGEST(0, v8);
        SAVE(1, v14);
        LARGEST(1, v14);
        LARGEST(2, v2);
        stf(new_param + i, v34);
    )
}

static void p389e289dc9118610(const hu_piece *w) {
    MEASURE(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v4 = v3 - v0;
        const vf v6 = v4 * c0;
        const vf v7 = v0 + v6;
        const vf v9 = v1 * c1;
        const vf v10 = v3 * v3;
        const vf v12 = v10 * c2;
        const vf v13 = v9 + v12;
        const vf v14 = sqrtv(v13);
        const vf v16 = v14 * c3;
        const vf v18 = v16 + c4;
        const vf v20 = v7 / c5;
        const vf v21 = v20 / v18;
        const vf v23 = maxf(c6, v21);
        const vf v25 = minf(c7, v23);
        const vf v27 = p * c8;
        const vf v28 = v25 + v27;
        TERM(0, p);
        TERM(1, v28);
    )
}

static void p3df070504e6b3c56(const hu_piece *w) {
    MEASURE(1)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    vi top1 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD,
        const vf v0 = ldf(state[0] + i);
        const vf v1 = READ(grad);
        const vf v2 = v1 * v1;
        const vf v4 = v2 + c0;
        const vf v5 = v4 - v0;
        const vf v7 = v5 * c1;
        const vf v8 = v0 + v7;
        const vf v9 = sqrtv(v8);
        const vf v11 = maxf(setf(0x1.b38fb80000000p-127f), v9);
        const vf v12 = v1 / v11;
        TERM(0, v12);
        LARGEST_TERM(1, v8);
    )
    LARGEST_OF(1);
}

static void p47a85c526c6de3da(const hu_piece *w) {
    START(1)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v4 = v0 * c0;
        const vf v6 = v2 * c1;
        const vf v7 = v4 + v6;
        const vf v9 = v7 * c2;
        const vf v10 = p - v9;
        SAVE(0, v7);
        LARGEST(0, v7);
        stf(new_param + i, v10);
    )
}

static void p4f1c11230064343c(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vm c4 = nef(setf(w->c[4]), setf(0.0f));
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    const vf c11 = setf(w->c[11]);
    const vm c12 = nef(setf(w->c[12]), setf(0.0f));
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v5 = READ(grad);
        const vf v7 = p * c0;
        const vf v8 = v5 - v0;
        const vf v10 = v8 * c1;
        const vf v11 = v0 + v10;
        const vf v13 = v1 * c2;
        const vf v14 = v5 * v5;
        const vf v16 = v14 * c3;
        const vf v17 = v13 + v16;
        const vf v22 = v11 * c6;
        const vf v23 = sqrtv(v17);
        const vf v25 = v23 * c7;
        const vf v27 = v25 + c8;
        const vf v29 = v11 / c9;
        const vf v30 = v29 / v27;
        const vf v32 = maxf(c10, v30);
        const vf v34 = minf(c11, v32);
        const vf v35 = v34 * c5;
        const vf v36 = self(c4, v22, v35);
        const vf v37 = self(c4, v1, v17);
        const vf v55 = self(c12, setf(0x0.0p+0f), v11);
        const vf v56 = v7 - v36;
        CHECK(v5);
        SAVE(0, v55);
        LARGEST(0, v55);
        SAVE(1, v37);
        LARGEST(1, v37);
        stf(new_param + i, v56);
    )
}

static void p54a3b5e3b386413e(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    const vf c11 = setf(w->c[11]);
    const vf c12 = setf(w->c[12]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v4 = READ(grad);
        const vf v5 = v4 - v0;
        const vf v7 = v5 * c0;
        const vf v8 = v0 + v7;
        const vf v10 = v1 * c1;
        const vf v11 = v4 * v4;
        const vf v13 = v11 * c2;
        const vf v14 = v10 + v13;
        const vf v15 = signf(v8);
        const vf v16 = signf(v0);
        const vf v17 = v15 * v16;
        const vf v19 = v2 * c3;
        const vf v21 = minf(c4, v19);
        const vf v23 = v2 * c5;
        const vf v25 = maxf(c6, v23);
        const vm v27 = ltf(setf(0x0.0p+0f), v17);
        const vm v28 = ltf(v17, setf(0x0.0p+0f));
        const vf v29 = self(v28, v25, v2);
        const vf v30 = self(v27, v21, v29);
        const vf v32 = v8 / c7;
        const vf v33 = sqrtv(v14);
        const vf v35 = v33 * c8;
        const vf v37 = v35 + c9;
        const vf v38 = v32 / v37;
        const vf v40 = maxf(c10, v38);
        const vf v42 = minf(c11, v40);
        const vf v43 = v42 * v30;
        const vf v44 = asf(absi(v43));
        const vf v46 = v44 * c12;
        const vf v48 = setf(0x1.0000000000000p+0f) - v46;
        const vf v49 = p * v48;
        const vf v50 = v49 - v43;
        SAVE(0, v8);
        LARGEST(0, v8);
        SAVE(1, v14);
        LARGEST(1, v14);
        SAVE(2, v30);
        LARGEST(2, v30);
        stf(new_param + i, v50);
    )
}

static void p5b805886638c2f15(const hu_piece *w) {
    START(1)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v4 = p * c0;
        const vf v5 = v2 + v4;
        const vf v7 = v0 * c1;
        const vf v9 = v5 * c2;
        const vf v10 = v7 + v9;
        const vf v12 = v10 * c3;
        const vf v13 = v5 + v12;
        const vf v15 = v13 * c4;
        const vf v16 = p - v15;
        SAVE(0, v10);
        LARGEST(0, v10);
        stf(new_param + i, v16);
    )
}

static void p65f14f78dfdbd89d(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v1 = READ(grad);
        const vf v3 = p * c0;
        const vf v5 = v1 - setf(0x0.0p+0f);
        const vf v7 = v5 * c1;
        const vf v8 = setf(0x0.0p+0f) + v7;
        const vf v10 = v1 * v1;
        const vf v12 = v10 * c3;
        const vf v13 = c2 + v12;
        const vf v14 = sqrtv(v13);
        const vf v16 = v14 * c4;
        const vf v18 = v16 + c5;
        const vf v20 = v8 / c6;
        const vf v21 = v20 / v18;
        const vf v23 = maxf(c7, v21);
        const vf v25 = minf(c8, v23);
        const vf v27 = v25 * c9;
        const vf v28 = v3 - v27;
        SAVE(0, v8);
        LARGEST(0, v8);
        SAVE(1, v13);
        LARGEST(1, v13);
        stf(new_param + i, v28);
    )
}

static void p6f75dd84e090c0a5(const hu_piece *w) {
    MEASURE(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    MEASURE_EACH_VECTOR(READ_GRAD,
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = READ(grad);
        const vf v3 = v2 - v0;
        const vf v5 = v3 * c0;
        const vf v6 = v0 + v5;
        const vf v8 = v1 * c1;
        const vf v9 = v2 * v2;
        const vf v11 = v9 * c2;
        const vf v12 = v8 + v11;
        const vf v13 = sqrtv(v12);
        const vf v15 = v13 * c3;
        const vf v17 = v15 + c4;
        const vf v19 = v6 / c5;
        const vf v20 = v19 / v17;
        const vf v22 = maxf(c6, v20);
        const vf v24 = minf(c7, v22);
        TERM(0, v24);
        PRODUCT(1, v24, v2);
    )
}

static void p742616e25397afec(const hu_piece *w) {
    MEASURE(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v5 = READ(grad);
        const vf v7 = v1 * c1;
        const vf v8 = v5 * v5;
        const vf v10 = v8 * c2;
        const vf v11 = v7 + v10;
        const vf v12 = sqrtv(v11);
        const vf v14 = v12 * c3;
        const vf v16 = v14 + c4;
        const vf v21 = v16 * c5;
        const vf v22 = v0 - v5;
        const vf v24 = v21 * c6;
        const vf v25 = v24 + setf(0x1.0000000000000p+0f);
        const vf v26 = v21 * v25;
        const vf v27 = setf(0x1.0000000000000p+0f) / v26;
        const vf v28 = v5 * c0;
        const vf v29 = v0 / v21;
        const vf v31 = p * c7;
        const vf v32 = v29 + v31;
        const vf v33 = v0 * v24;
        const vf v34 = v5 + v33;
        const vf v35 = v34 * v27;
        const vf v36 = v22 * v27;
        PRODUCT(0, v28, v32);
        PRODUCT(1, v22, v35);
        PRODUCT(2, v22, v31);
        PRODUCT(3, v22, v36);
    )
}

static void p777ccb6116c18c29(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v4 = v3 - v0;
        const vf v6 = v4 * c0;
        const vf v7 = v0 + v6;
        const vf v9 = v1 * c1;
        const vf v10 = v3 * v3;
        const vf v12 = v10 * c2;
        const vf v13 = v9 + v12;
        const vf v14 = sqrtv(v13);
        const vf v16 = v14 * c3;
        const vf v18 = v16 + c4;
        const vf v20 = v7 / c5;
        const vf v21 = v20 / v18;
        const vf v23 = maxf(c6, v21);
        const vf v25 = minf(c7, v23);
        const vf v27 = p * c8;
        const vf v28 = v25 + v27;
        const vf v30 = v28 * c9;
        const vf v31 = p - v30;
        SAVE(0, v7);
        LARGEST(0, v7);
        SAVE(1, v13);
        LARGEST(1, v13);
        stf(new_param + i, v31);
    )
}

static void p7d50d1fa2d7a0047(const hu_piece *w) {
    MEASURE(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    vi top0 = seti(0);
    vi top1 = seti(0);
    vi top2 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v7 = v6 - v0;
        const vf v9 = v7 * c1;
        const vf v10 = v0 + v9;
        const vf v12 = v1 * c2;
        const vf v13 = v6 * v6;
        const vf v15 = v13 * c3;
        const vf v16 = v12 + v15;
        LARGEST_TERM(0, v3);
        LARGEST_TERM(1, v10);
        LARGEST_TERM(2, v16);
    )
    LARGEST_OF(0);
    LARGEST_OF(1);
    LARGEST_OF(2);
}

static void p83e72a5a5df34b21(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 + v5;
        const vf v8 = p * c1;
        const vf v9 = v6 - v0;
        const vf v11 = v9 * c2;
        const vf v12 = v0 + v11;
        const vf v14 = v1 * c3;
        const vf v15 = v6 * v6;
        const vf v17 = v15 * c4;
        const vf v18 = v14 + v17;
        const vf v19 = sqrtv(v18);
        const vf v21 = v19 + c5;
        const vf v23 = setf(0x1.0000000000000p+0f) / v21;
        const vf v25 = v23 * c6;
        const vf v27 = maxf(c7, v25);
        const vf v29 = minf(c8, v27);
        const vf v30 = v29 * v12;
        const vf v31 = v8 - v30;
        SAVE(0, v12);
        LARGEST(0, v12);
        SAVE(1, v18);
        LARGEST(1, v18);
        stf(new_param + i, v31);
    )
}

static void p8635e4c60ac2a310(const hu_piece *w) {
    START(1)
    FOR_EACH_VECTOR(READ_GRAD,
        const vf v0 = READ(grad);
        SAVE(0, v0);
        LARGEST(0, v0);
    )
}

static void p946ea71207b51b97(const hu_piece *w) {
    START(0)
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf row0 = setf(w->c[0]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v1 = READ(grad);
        const vf v3 = v1 * row0;
        const vf v4 = ldf(w->column[0] + i);
        const vf v5 = v3 * v4;
        const vf v7 = v5 * c1;
        const vf v9 = v7 * c2;
        const vf v11 = p * c3;
        const vf v12 = v11 - v9;
        CHECK(v1);
        stf(new_param + i, v12);
    )
}

static void p9ee7c280db914294(const hu_piece *w) {
    START(3)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    const vf c11 = setf(w->c[11]);
    const vf c12 = setf(w->c[12]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v2 = ldf(state[2] + i);
        const vf v4 = READ(grad);
        const vf v6 = p * c0;
        const vf v7 = v4 + v6;
        const vf v9 = p * c1;
        const vf v10 = v7 - v0;
        const vf v12 = v10 * c2;
        const vf v13 = v0 + v12;
        const vf v15 = v1 * c3;
        const vf v16 = v7 * v7;
        const vf v18 = v16 * c4;
        const vf v19 = v15 + v18;
        const vf v20 = v7 - v2;
        const vf v22 = v20 * c5;
        const vf v23 = v2 + v22;
        const vf v24 = sqrtv(v19);
        const vf v26 = v24 * c6;
        const vf v28 = v26 + c7;
        const vf v30 = v13 / c8;
        const vf v32 = v23 * c9;
        const vf v33 = v30 + v32;
        const vf v34 = v33 / v28;
        const vf v36 = maxf(c10, v34);
        const vf v38 = minf(c11, v36);
        const vf v40 = v38 * c12;
        const vf v41 = v9 - v40;
        SAVE(0, v13);
        LARGEST(0, v13);
        SAVE(1, v19);
        LARGEST(1, v19);
        SAVE(2, v23);
        LARGEST(2, v23);
        stf(new_param + i, v41);
    )
}

static void pa3f66ea79e8ade5b(const hu_piece *w) {
    MEASURE(0)
    vi top0 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD,
        const vf v0 = READ(grad);
        LARGEST_TERM(0, v0);
    )
    LARGEST_OF(0);
}

static void pb0016260b3b21b04(const hu_piece *w) {
    MEASURE(1)
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf row0 = setf(w->c[0]);
    vi top0 = seti(0);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v4 = p * c1;
        const vf v5 = v2 + v4;
        const vf v7 = v5 * row0;
        const vf v8 = ldf(w->column[0] + i);
        const vf v9 = v7 * v8;
        const vf v11 = v9 * c2;
        const vf v13 = v11 * c3;
        const vf v14 = v13 - v0;
        const vf v16 = v14 * c4;
        const vf v17 = v0 + v16;
        LARGEST_TERM(0, v17);
    )
    LARGEST_OF(0);
}

static void pb94129fd2c9d97fb(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v4 = v3 * v3;
        const vf v6 = v4 + c0;
        const vf v7 = v6 - v0;
        const vf v9 = v7 * c1;
        const vf v10 = v0 + v9;
        const vf v11 = sqrtv(v10);
        const vf v13 = maxf(setf(0x1.b38fb80000000p-127f), v11);
        const vf v14 = v3 / v13;
        const vf v16 = v14 * c2;
        const vf v18 = v16 * c3;
        const vf v19 = v18 - v1;
        const vf v21 = v19 * c4;
        const vf v22 = v1 + v21;
        const vf v24 = p * c5;
        const vf v25 = v24 - v22;
        SAVE(0, v10);
        LARGEST(0, v10);
        SAVE(1, v22);
        LARGEST(1, v22);
        stf(new_param + i, v25);
    )
}

static void pc4c6148209f48c87(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 - v0;
        const vf v8 = v6 * c1;
        const vf v9 = v0 + v8;
        const vf v10 = v3 * v3;
        const vf v12 = v1 * c2;
        const vf v14 = v10 * c3;
        const vf v15 = v12 + v14;
        const vf v16 = sqrtv(v15);
        const vf v18 = v16 * c4;
        const vf v20 = v18 + c5;
        const vf v22 = v9 / c6;
        const vf v23 = v22 / v20;
        const vf v25 = maxf(c7, v23);
        const vf v27 = minf(c8, v25);
        const vf v29 = v27 * c9;
        const vf v30 = v5 - v29;
        SAVE(0, v9);
        LARGEST(0, v9);
        SAVE(1, v15);
        LARGEST(1, v15);
        stf(new_param + i, v30);
    )
}

static void pc6c2c3d1c408eb76(const hu_piece *w) {
    MEASURE(1)
    MEASURE_EACH_VECTOR(READ_GRAD,
        const vf v0 = ldf(state[0] + i);
        const vf v1 = READ(grad);
        const vf v2 = v0 - v1;
        TERM(0, v1);
        TERM(1, v2);
    )
}

static void pcb9de9e1b9a8f6b0(const hu_piece *w) {
    MEASURE(1)
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf row0 = setf(w->c[0]);
    MEASURE_EACH_VECTOR(READ_GRAD READ_PARAM(0),
        const vf p = READ(param);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v4 = p * c1;
        const vf v5 = v2 + v4;
        const vf v7 = v5 * row0;
        const vf v8 = ldf(w->column[0] + i);
        const vf v9 = v7 * v8;
        const vf v11 = v9 * c2;
        const vf v12 = v11 - v0;
        const vf v14 = v12 * c3;
        const vf v15 = v0 + v14;
        const vf v16 = v11 - v15;
        const vf v17 = v16 * v16;
        const vf v19 = v17 + c4;
        TERM(0, v19);
    )
}

static void pcf2ff8c04d1b4207(const hu_piece *w) {
    START(0)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v1 = READ(grad);
        const vf v3 = p * c0;
        const vf v4 = v1 + v3;
        const vf v6 = v4 * c1;
        const vf v7 = p - v6;
        CHECK(v1);
        stf(new_param + i, v7);
    )
}

static void pd4126250ef52578a(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 - v0;
        const vf v8 = v6 * c1;
        const vf v9 = v0 + v8;
        const vf v11 = v1 * c2;
        const vf v12 = v3 * v3;
        const vf v14 = v12 * c3;
        const vf v15 = v11 + v14;
        const vf v16 = sqrtv(v15);
        const vf v18 = v16 * c4;
        const vf v20 = v18 + c5;
        const vf v22 = v9 / c6;
        const vf v23 = v22 / v20;
        const vf v25 = maxf(c7, v23);
        const vf v27 = minf(c8, v25);
        const vf v29 = v27 * c9;
        const vf v31 = v29 * c10;
        const vf v32 = v5 - v31;
        SAVE(0, v9);
        LARGEST(0, v9);
        SAVE(1, v15);
        LARGEST(1, v15);
        stf(new_param + i, v32);
    )
}

static void pd842b9d2ab38c68e(const hu_piece *w) {
    START(1)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v2 = READ(grad);
        const vf v4 = p * c0;
        const vf v5 = v2 + v4;
        const vf v7 = p * c1;
        const vf v9 = v5 * c2;
        const vf v10 = v9 * v9;
        const vf v12 = v10 + setf(0x1.0000000000000p+0f);
        const vf v13 = v5 / v12;
        const vf v15 = v0 * c3;
        const vf v17 = v13 * c4;
        const vf v18 = v15 + v17;
        const vf v20 = v18 * c5;
        const vf v21 = v7 - v20;
        SAVE(0, v18);
        LARGEST(0, v18);
        stf(new_param + i, v21);
    )
}

static void pe61fbbcc8dda4b26(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    const vf c10 = setf(w->c[10]);
    const vf c11 = setf(w->c[11]);
    const vf c12 = setf(w->c[12]);
    const vf c13 = setf(w->c[13]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v1 = READ(grad);
        const vf v3 = p * c0;
        const vf v4 = v1 + v3;
        const vf v6 = p * c1;
        const vm v12 = nef(v4, v4);
        const vf v13 = maxf(v4, c3);
        const vf v14 = self(v12, v4, v13);
        const vm v15 = nef(v14, v14);
        const vf v16 = minf(v14, c2);
        const vf v17 = self(v15, v14, v16);
        const vf v18 = v17 - setf(0x0.0p+0f);
        const vf v20 = v18 * c4;
        const vf v21 = setf(0x0.0p+0f) + v20;
        const vf v24 = v17 * v17;
        const vf v26 = v24 * c6;
        const vf v27 = c5 + v26;
        const vf v28 = sqrtv(v27);
        const vf v30 = v28 * c7;
        const vf v32 = v30 + c8;
        const vf v34 = v21 / c9;
        const vf v35 = v34 / v32;
        const vf v37 = maxf(c10, v35);
        const vf v39 = minf(c11, v37);
        const vf v41 = v39 * c12;
        const vf v43 = v41 * c13;
        const vf v44 = v6 - v43;
        CHECK(v1);
        SAVE(0, v21);
        LARGEST(0, v21);
        SAVE(1, v27);
        LARGEST(1, v27);
        stf(new_param + i, v44);
    )
}

static void pef0bdb2356ef90e4(const hu_piece *w) {
    MEASURE(0)
    const vf c0 = setf(w->c[0]);
    MEASURE_EACH_VECTOR(READ_GRAD,
        const vf v0 = READ(grad);
        const vf v1 = v0 * v0;
        const vf v3 = v1 + c0;
        TERM(0, v3);
    )
}

static void pf229cd49bebb8a2c(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v4 = v3 - v0;
        const vf v6 = v4 * c0;
        const vf v7 = v0 + v6;
        const vf v9 = v1 * c1;
        const vf v10 = v3 * v3;
        const vf v12 = v10 * c2;
        const vf v13 = v9 + v12;
        const vf v14 = sqrtv(v13);
        const vf v16 = v14 * c3;
        const vf v18 = v16 + c4;
        const vf v20 = v7 / c5;
        const vf v21 = v20 / v18;
        const vf v23 = maxf(c6, v21);
        const vf v25 = minf(c7, v23);
        const vf v27 = p * c8;
        const vf v29 = v25 * c9;
        const vf v30 = v27 - v29;
        SAVE(0, v7);
        LARGEST(0, v7);
        SAVE(1, v13);
        LARGEST(1, v13);
        stf(new_param + i, v30);
    )
}

static void pf743363cd0414ba0(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v12 = v3 * c0;
        const vf v13 = v12 - v0;
        const vf v15 = v13 * c1;
        const vf v16 = v0 + v15;
        const vf v18 = v1 * c2;
        const vf v19 = v12 * v12;
        const vf v21 = v19 * c3;
        const vf v22 = v18 + v21;
        const vf v23 = sqrtv(v22);
        const vf v25 = v23 * c4;
        const vf v27 = v25 + c5;
        const vf v28 = v16 / v27;
        const vf v30 = maxf(c6, v28);
        const vf v32 = minf(c7, v30);
        const vf v34 = p * c8;
        const vf v36 = v32 * c9;
        const vf v37 = v34 - v36;
        SAVE(0, v16);
        LARGEST(0, v16);
        SAVE(1, v22);
        LARGEST(1, v22);
        stf(new_param + i, v37);
    )
}

static void pfc7189299438f58a(const hu_piece *w) {
    START(2)
    const vf c0 = setf(w->c[0]);
    const vf c1 = setf(w->c[1]);
    const vf c2 = setf(w->c[2]);
    const vf c3 = setf(w->c[3]);
    const vf c4 = setf(w->c[4]);
    const vf c5 = setf(w->c[5]);
    const vf c6 = setf(w->c[6]);
    const vf c7 = setf(w->c[7]);
    const vf c8 = setf(w->c[8]);
    const vf c9 = setf(w->c[9]);
    FOR_EACH_VECTOR(READ_GRAD READ_PARAM(1),
        const vf p = READ(param);
        stf(old_param + i, p);
        const vf v0 = ldf(state[0] + i);
        const vf v1 = ldf(state[1] + i);
        const vf v3 = READ(grad);
        const vf v5 = p * c0;
        const vf v6 = v3 - v0;
        const vf v8 = v6 * c1;
        const vf v9 = v0 + v8;
        const vf v11 = v1 * c2;
        const vf v12 = v3 * v3;
        const vf v14 = v12 * c3;
        const vf v15 = v11 + v14;
        const vf v16 = sqrtv(v15);
        const vf v18 = v16 * c4;
        const vf v20 = v18 + c5;
        const vf v22 = v9 / c6;
        const vf v23 = v22 / v20;
        const vf v25 = maxf(c7, v23);
        const vf v27 = minf(c8, v25);
        const vf v29 = v27 * c9;
        const vf v30 = v5 - v29;
        SAVE(0, v9);
        LARGEST(0, v9);
        SAVE(1, v15);
        LARGEST(1, v15);
        stf(new_param + i, v30);
    )
}

static const hu_program table[] = {
    {0x067c7144d9f1b773u, p067c7144d9f1b773},
    {0x1453ac609e3867a1u, p1453ac609e3867a1},
    {0x1a91f83c3c09e3f1u, p1a91f83c3c09e3f1},
    {0x26fdfd0cb017ac11u, p26fdfd0cb017ac11},
    {0x2e5f3dd7670feb9au, p2e5f3dd7670feb9a},
    {0x32dcce2b6160d5abu, p32dcce2b6160d5ab},
    {0x389e289dc9118610u, p389e289dc9118610},
    {0x3df070504e6b3c56u, p3df070504e6b3c56},
    {0x47a85c526c6de3dau, p47a85c526c6de3da},
    {0x4f1c11230064343cu, p4f1c11230064343c},
    {0x54a3b5e3b386413eu, p54a3b5e3b386413e},
    {0x5b805886638c2f15u, p5b805886638c2f15},
    {0x65f14f78dfdbd89du, p65f14f78dfdbd89d},
    {0x6f75dd84e090c0a5u, p6f75dd84e090c0a5},
    {0x742616e25397afecu, p742616e25397afec},
    {0x777ccb6116c18c29u, p777ccb6116c18c29},
    {0x7d50d1fa2d7a0047u, p7d50d1fa2d7a0047},
    {0x83e72a5a5df34b21u, p83e72a5a5df34b21},
    {0x8635e4c60ac2a310u, p8635e4c60ac2a310},
    {0x946ea71207b51b97u, p946ea71207b51b97},
    {0x9ee7c280db914294u, p9ee7c280db914294},
    {0xa3f66ea79e8ade5bu, pa3f66ea79e8ade5b},
    {0xb0016260b3b21b04u, pb0016260b3b21b04},
    {0xb94129fd2c9d97fbu, pb94129fd2c9d97fb},
    {0xc4c6148209f48c87u, pc4c6148209f48c87},
    {0xc6c2c3d1c408eb76u, pc6c2c3d1c408eb76},
    {0xcb9de9e1b9a8f6b0u, pcb9de9e1b9a8f6b0},
    {0xcf2ff8c04d1b4207u, pcf2ff8c04d1b4207},
    {0xd4126250ef52578au, pd4126250ef52578a},
    {0xd842b9d2ab38c68eu, pd842b9d2ab38c68e},
    {0xe61fbbcc8dda4b26u, pe61fbbcc8dda4b26},
    {0xef0bdb2356ef90e4u, pef0bdb2356ef90e4},
    {0xf229cd49bebb8a2cu, pf229cd49bebb8a2c},
    {0xf743363cd0414ba0u, pf743363cd0414ba0},
    {0xfc7189299438f58au, pfc7189299438f58a},
};
#endif
