package loader

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime/metrics"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const demoModel = "../testdata/demo/model.gguf"

// parse reads the metadata of a file that is in memory.
func parse(b []byte) (*ggufFile, error) {
	return parseGGUF("model.gguf", bytes.NewReader(b), int64(len(b)))
}

// encode is the bytes of a file as WriteGGUF makes it.
func encode(t testing.TB, kv []KV, tensors []TensorData) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, encodeGGUF(&b, kv, tensors))
	return b.Bytes()
}

// requireInputError checks that an error is the user's and says all of parts.
func requireInputError(t testing.TB, err error, parts ...string) {
	t.Helper()
	var input *InputError
	require.ErrorAs(t, err, &input)
	for _, part := range parts {
		require.Contains(t, input.Message+"\n"+input.Hint, part)
	}
	require.NotContains(t, input.Message, "\n", "one line")
}

// raw builds files that WriteGGUF would not write.
type raw struct{ bytes.Buffer }

func rawHeader(version uint32, tensors, entries uint64) *raw {
	r := &raw{}
	r.WriteString("GGUF")
	return r.u32(version).u64(tensors).u64(entries)
}

func (r *raw) u32(x uint32) *raw    { binary.Write(r, binary.LittleEndian, x); return r }
func (r *raw) u64(x uint64) *raw    { binary.Write(r, binary.LittleEndian, x); return r }
func (r *raw) text(s string) *raw   { r.u64(uint64(len(s))).WriteString(s); return r }
func (r *raw) zeros(n int) *raw     { r.Write(make([]byte, n)); return r }
func (r *raw) put(b ...byte) *raw   { r.Write(b); return r }
func (r *raw) key(k string) *raw    { return r.text(k) }
func (r *raw) string(s string) *raw { return r.u32(8).text(s) }

func (r *raw) tensor(name string, t TensorType, offset uint64, shape ...uint64) *raw {
	r.text(name).u32(uint32(len(shape)))
	for _, n := range shape {
		r.u64(n)
	}
	return r.u32(uint32(t)).u64(offset)
}

func TestEveryValueComesBack(t *testing.T) {
	kv := []KV{
		{"u8", uint8(255)}, {"i8", int8(-128)}, {"u16", uint16(65535)}, {"i16", int16(-2)}, {"u32", uint32(1 << 31)}, {"i32", int32(-3)},
		{"u64", uint64(1 << 63)}, {"i64", int64(math.MinInt64)}, {"f32", float32(1.5)}, {"f64", math.Pi}, {"bool", true}, {"string", "añ\x00\xff"},
		{"u8s", []uint8{1, 2}}, {"i8s", []int8{-1}}, {"u16s", []uint16{3}}, {"i16s", []int16{-4, 5}}, {"u32s", []uint32{6}}, {"i32s", []int32{-7}},
		{"u64s", []uint64{8}}, {"i64s", []int64{-9}}, {"f32s", []float32{0.25, -1}}, {"f64s", []float64{1e300}}, {"bools", []bool{true, false}},
		{"strings", []string{"", "a", strings.Repeat("b", 70000)}}, {"none", []float32{}}, {"no strings", []string{}},
	}
	weights := []float32{1, -2, 3, 4, 5, 6}
	blocks := bytes.Repeat([]byte{7}, 34*2)
	tensors := []TensorData{
		{"a.weight", F32, []int64{3, 2}, Floats(weights)},
		{"b.weight", Q8_0, []int64{32, 1, 2}, bytes.NewReader(blocks)},
		{"c.weight", F32, []int64{1}, Floats([]float32{9})},
	}
	path := filepath.Join(t.TempDir(), "all.gguf")
	require.NoError(t, WriteGGUF(path, kv, tensors))
	require.NoError(t, openGGUF(path, func(g *ggufFile) error {
		require.Equal(t, kv, g.kv)
		require.Equal(t, uint32(3), g.version)
		require.Len(t, g.tensors, 3)
		for i, expected := range []Tensor{
			{"a.weight", F32, []int64{3, 2}, 24, 0}, {"b.weight", Q8_0, []int64{32, 1, 2}, 68, 32}, {"c.weight", F32, []int64{1}, 4, 128},
		} {
			expected.offset += g.tensors[0].offset
			require.Equal(t, expected, g.tensors[i])
			require.Zero(t, g.tensors[i].offset%defaultAlignment)
		}
		values, err := g.floats(g.tensors[0])
		require.NoError(t, err)
		require.Equal(t, weights, values)
		data := make([]byte, len(blocks))
		_, err = g.in.ReadAt(data, g.tensors[1].offset)
		require.NoError(t, err)
		require.Equal(t, blocks, data)
		return nil
	}))
}

func TestAlignmentIsThatOfTheFile(t *testing.T) {
	b := encode(t, []KV{{"general.alignment", uint32(64)}}, []TensorData{
		{"a", F32, []int64{1}, Floats([]float32{1})}, {"b", F32, []int64{1}, Floats([]float32{2})},
	})
	g, err := parse(b)
	require.NoError(t, err)
	require.Zero(t, g.tensors[0].offset%64)
	require.Equal(t, g.tensors[0].offset+64, g.tensors[1].offset)
}

func TestVersion2IsRead(t *testing.T) {
	b := encode(t, []KV{{"a", "b"}}, nil)
	binary.LittleEndian.PutUint32(b[4:], 2)
	g, err := parse(b)
	require.NoError(t, err)
	require.Equal(t, "b", g.get("a"))
}

// Sizes follow from the blocks in ggml-common.h: their scales (2 bytes each in
// most), bits of quants, and tables.
func TestSizesOfTypes(t *testing.T) {
	const k = 256
	for typ, size := range map[TensorType]int64{
		Q4_0: 2 + 32/2, Q4_1: 2 + 2 + 32/2, Q5_0: 2 + 4 + 32/2, Q5_1: 2 + 2 + 4 + 32/2, Q8_0: 2 + 32, MXFP4: 1 + 32/2, IQ4_NL: 2 + 32/2,
		Q2_K: 2 + 2 + k/16 + k/4, Q3_K: 2 + k/4 + k/8 + 12, Q4_K: 2 + 2 + 12 + k/2, Q5_K: 2 + 2 + 12 + k/2 + k/8, Q6_K: 2 + k/16 + 3*k/4,
		IQ2_XXS: 2 + k/4, IQ2_XS: 2 + k/4 + k/32, IQ2_S: 2 + k/4 + k/16, IQ3_XXS: 2 + 3*k/8, IQ3_S: 2 + 13*k/32 + 4, IQ1_S: 2 + k/8 + k/16,
		IQ1_M: k/8 + k/16 + k/32, IQ4_XS: 2 + 2 + k/64 + k/2, TQ1_0: 2 + k/64 + (k-4*k/64)/5, TQ2_0: 2 + k/4,
	} {
		require.Equal(t, size, layouts[typ].bytes, "%v", typ)
		n, err := checkTensor("x", typ, []int64{2 * layouts[typ].block, 3})
		require.NoError(t, err)
		require.Equal(t, 6*size, n, "%v", typ)
	}
}

func TestHostileHeaders(t *testing.T) {
	one := func() *raw { return rawHeader(3, 0, 1) }
	for name, c := range map[string]struct {
		file *raw
		says string
	}{
		"empty":               {&raw{}, "model.gguf: the file is empty"},
		"another format":      {(&raw{}).put([]byte("PK\x03\x04 and so on")...), `not a GGUF file: it begins with "PK\x03\x04", expected "GGUF"`},
		"short":               {(&raw{}).put('G', 'G'), `begins with "GG"`},
		"version 0":           {rawHeader(0, 0, 0), "version 0, expected 2 or 3"},
		"version 1":           {rawHeader(1, 0, 0), "GGUF version 1, and llama.cpp reads versions 2 and 3"},
		"version 4":           {rawHeader(4, 0, 0), "version 4, expected 2 or 3"},
		"big endian":          {rawHeader(3<<24, 0, 0), "big-endian"},
		"entries":             {rawHeader(3, 0, 1<<62).zeros(64), "4611686018427387904 metadata entries are announced, but only 64 bytes follow"},
		"negative entries":    {rawHeader(3, 0, math.MaxUint64).zeros(64), "18446744073709551615 metadata entries"},
		"tensors":             {rawHeader(3, math.MaxUint64, 0).zeros(64), "18446744073709551615 tensors are announced"},
		"too many entries":    {rawHeader(3, 0, maxEntries+1).zeros(2 << 20), "65537 metadata entries are announced, expected at most 65536"},
		"long key":            {one().u64(math.MaxUint64).zeros(64), "the key of metadata entry 0 takes 18446744073709551615 bytes from byte 32 on"},
		"long key within":     {one().text(strings.Repeat("k", 70000)).u32(7).put(1), "the key has 70000 bytes"},
		"no key":              {one().key("").u32(8).text("x"), "metadata entry 0: the key is empty"},
		"zero in key":         {one().key("general.alignment\x00x").u32(7).put(1), `contains a zero byte`},
		"key twice":           {rawHeader(3, 0, 2).key("a").string("x").key("a").string("y"), `key "a" occurs twice`},
		"type":                {one().key("a").u32(13).zeros(64), `key "a" is of type 13, which GGUF does not have`},
		"negative type":       {one().key("a").u32(math.MaxUint32).zeros(64), `key "a" is of type 4294967295`},
		"bool":                {one().key("a").u32(7).put(2), `key "a" holds 2 for a bool, expected 0 or 1`},
		"bools":               {one().key("a").u32(9).u32(7).u64(2).put(1, 255), `key "a" holds 255 for a bool`},
		"long string":         {one().key("a").u32(8).u64(1 << 63).zeros(9), `the value of "a" takes 9223372036854775808 bytes from byte 45 on, but the file ends at 54 (truncated?)`},
		"array of arrays":     {one().key("a").u32(9).u32(9).u64(1).u32(9).u32(9).u64(1).zeros(64), `key "a" is an array of arrays`},
		"array type":          {one().key("a").u32(9).u32(99).u64(1).zeros(64), `key "a" is an array of type 99`},
		"long array":          {one().key("a").u32(9).u32(4).u64(1 << 62).zeros(64), `the value of "a" has 4611686018427387904 elements`},
		"array of overflow":   {one().key("a").u32(9).u32(12).u64(1<<61 + 1).zeros(64), `the value of "a" has 2305843009213693953 elements`},
		"long array of texts": {one().key("a").u32(9).u32(8).u64(9).zeros(64), `the value of "a" takes 72 bytes`},
		"texts cut off":       {one().key("a").u32(9).u32(8).u64(2).text("x").u64(100), `the value of "a" takes 100 bytes`},
		"alignment 0":         {one().key("general.alignment").u32(4).u32(0), "general.alignment is 0, expected a power of 2"},
		"alignment 24":        {one().key("general.alignment").u32(4).u32(24), "general.alignment is 24"},
		"alignment's type":    {one().key("general.alignment").string("32"), "general.alignment is of type string, expected u32"},
		"huge alignment":      {rawHeader(3, 1, 1).key("general.alignment").u32(4).u32(1<<31).tensor("a", F32, 0, 1).zeros(64), `tensor "a" needs bytes 2147483648 to 2147483652`},
		"tensor without name": {rawHeader(3, 1, 0).tensor("", F32, 0, 1).zeros(64), "a tensor has no name"},
		"long name":           {rawHeader(3, 1, 0).tensor(strings.Repeat("n", 64), F32, 0, 1).zeros(64), "has a name of 64 bytes, expected at most 63"},
		"zero in name":        {rawHeader(3, 1, 0).tensor("a\x00b", F32, 0, 1).zeros(64), "zero byte in its name"},
		"dimensions":          {rawHeader(3, 1, 0).tensor("a", F32, 0, 1, 1, 1, 1, 1).zeros(64), `tensor "a" has 5 dimensions, expected at most 4`},
		"dimension 0":         {rawHeader(3, 1, 0).tensor("a", F32, 0, 4, 0).zeros(64), `tensor "a" has the shape [4 0], expected positive`},
		"dimension -1":        {rawHeader(3, 1, 0).tensor("a", F32, 0, math.MaxUint64).zeros(64), `tensor "a" has the shape [-1], expected positive`},
		"overflow":            {rawHeader(3, 1, 0).tensor("a", F32, 0, 1<<32, 1<<32, 1<<32).zeros(64), "more elements than any file holds"},
		"overflow to little":  {rawHeader(3, 1, 0).tensor("a", F32, 0, 1<<40, 1<<22, 4).zeros(64), "more elements than any file holds"},
		"more than there is":  {rawHeader(3, 1, 0).tensor("a", F32, 0, 1<<50).zeros(64), `tensor "a" needs bytes 0 to 4503599627370496 of the data`},
		"tensor type":         {rawHeader(3, 1, 0).tensor("a", 40, 0, 1).zeros(64), `tensor "a" is of type 40, which ggml does not know`},
		"removed type":        {rawHeader(3, 1, 0).tensor("a", 4, 0, 32).zeros(64), `tensor "a" is of type 4, which ggml does not know`},
		"negative type of it": {rawHeader(3, 1, 0).tensor("a", math.MaxUint32, 0, 1).zeros(64), "is of type 4294967295"},
		"block":               {rawHeader(3, 1, 0).tensor("a", Q4_K, 0, 128, 2).zeros(256), `tensor "a" has rows of 128 elements, expected a multiple of 256`},
		"tensor twice":        {rawHeader(3, 2, 0).tensor("a", F32, 0, 1).tensor("a", F32, 32, 1).zeros(99), `tensor "a" occurs twice`},
		"overlap":             {rawHeader(3, 2, 0).tensor("a", F32, 0, 9).tensor("b", F32, 32, 1).zeros(99), `tensor "b" begins at byte 32 of the data, expected 64`},
		"gap":                 {rawHeader(3, 2, 0).tensor("a", F32, 0, 1).tensor("b", F32, 64, 1).zeros(99), `tensor "b" begins at byte 64 of the data, expected 32`},
		"offset":              {rawHeader(3, 1, 0).tensor("a", F32, math.MaxUint64-31, 1).zeros(99), `tensor "a" begins at byte 18446744073709551584 of the data, expected 0`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse(c.file.Bytes())
			requireInputError(t, err, c.says)
		})
	}
}

func TestTensorBeyondTheEnd(t *testing.T) {
	b := encode(t, nil, []TensorData{{"a", F32, []int64{1000}, Floats(make([]float32, 1000))}})
	_, err := parse(b[:3000])
	requireInputError(t, err, `tensor "a" needs bytes 0 to 4000 of the data, but the whole file has 3000 (truncated?)`)
	_, err = parse(b[:4030])
	requireInputError(t, err, fmt.Sprintf(`tensor "a" needs bytes %d to %d, but the file ends at 4030 (truncated?)`, len(b)-4000, len(b)))
	_, err = parse(b[:len(b)-1])
	requireInputError(t, err, "(truncated?)")
	_, err = parse(b)
	require.NoError(t, err)
}

// fieldEnds lists where the parts of a file's metadata end, read without the
// parser under test; of arrays of strings the first and last few are enough.
func fieldEnds(t *testing.T, b []byte) []int {
	t.Helper()
	var ends []int
	pos := 0
	step := func(n int) { pos += n; ends = append(ends, pos) }
	u32 := func() int { step(4); return int(binary.LittleEndian.Uint32(b[pos-4:])) }
	u64 := func() int { step(8); return int(binary.LittleEndian.Uint64(b[pos-8:])) }
	sizes := map[int]int{0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
	step(4)
	u32()
	tensors, entries := u64(), u64()
	for range entries {
		step(u64())
		switch typ := u32(); typ {
		case 8:
			step(u64())
		case 9:
			element, n := u32(), u64()
			for i := 0; element == 8 && i < n; i++ {
				keep := len(ends)
				step(u64())
				if i > 2 && i < n-2 {
					ends = ends[:keep]
				}
			}
			if element != 8 {
				step(n * sizes[element])
			}
		default:
			step(sizes[typ])
		}
	}
	for range tensors {
		step(u64())
		for range u32() {
			u64()
		}
		u32()
		u64()
	}
	return ends
}

func TestTruncatedDemo(t *testing.T) {
	demo, err := os.ReadFile(demoModel)
	require.NoError(t, err)
	whole, err := parse(demo)
	require.NoError(t, err)

	ends := fieldEnds(t, demo)
	require.Greater(t, len(ends), 500)
	for _, end := range ends {
		for _, cut := range []int{end - 1, end, end + 1} {
			_, err := parse(demo[:cut])
			requireInputError(t, err, "model.gguf: ")
		}
	}
	for _, tensor := range whole.tensors {
		for _, cut := range []int64{tensor.offset, tensor.offset + tensor.Bytes - 1} {
			_, err := parse(demo[:cut])
			requireInputError(t, err, "needs bytes", "(truncated?)")
		}
	}

	last := whole.tensors[len(whole.tensors)-1]
	for cut, says := range map[int]string{
		0:             "model.gguf: the file is empty",
		3:             `model.gguf: not a GGUF file: it begins with "GGU", expected "GGUF"`,
		4:             "model.gguf: the version takes 4 bytes from byte 4 on, but the file ends at 4 (truncated?)",
		8:             "model.gguf: the number of tensors takes 8 bytes from byte 8 on, but the file ends at 8 (truncated?)",
		16:            "model.gguf: 68 tensors are announced, but only 0 bytes follow (truncated?)",
		2400:          `model.gguf: the value of "tokenizer.ggml.tokens" takes 32768 bytes from byte 879 on, but the file ends at 2400 (truncated?)`,
		len(demo) - 1: fmt.Sprintf("model.gguf: tensor %q needs bytes %d to %d, but the file ends at %d (truncated?)", last.Name, last.offset, last.offset+last.Bytes, len(demo)-1),
	} {
		_, err := parse(demo[:cut])
		requireInputError(t, err, says)
	}
}

func TestNotAFile(t *testing.T) {
	dir := t.TempDir()
	for path, says := range map[string]string{
		dir:                          "this is not a file but a folder",
		filepath.Join(dir, "none"):   "cannot read this file: no such file or directory",
		filepath.Join(dir, "a", "b"): "cannot read this file: no such file or directory",
		"/dev/zero":                  "this is not a file but a device",
		filepath.Join(dir, "x\x00y"): "cannot read this file",
		"":                           "cannot read this file",
	} {
		_, err := CheckModel(path)
		requireInputError(t, err, says)
		_, err = Read(path)
		requireInputError(t, err, says)
	}
}

// allocated is how many bytes this process has ever taken from the heap.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// allocationBound for a file of n bytes. The least that metadata can be is 8
// bytes for an empty string (16 in a slice, which doubles as it grows), 14 for an
// entry and 33 for a tensor (some hundred bytes with their names and places in
// maps); 2 MB are for buffers, tables and messages.
func allocationBound(n int) uint64 { return 64*uint64(n) + 2<<20 }

func TestMemoryIsBoundedByTheFile(t *testing.T) {
	texts := rawHeader(3, 0, 1).key("a").u32(9).u32(8).u64(1 << 20)
	texts.zeros(8 << 20)
	entries := rawHeader(3, 0, 60000)
	for i := range 60000 {
		entries.key(fmt.Sprint(i)).u32(7).put(1)
	}
	tensors := rawHeader(3, 60000, 0)
	for i := range 60000 {
		tensors.tensor(fmt.Sprint(i), F32, uint64(32*i), 1)
	}
	tensors.zeros(32 * 60001)
	announced := rawHeader(3, 0, 1).key("a").u32(9).u32(8).u64(1 << 20)
	for name, file := range map[string]*raw{"texts": texts, "entries": entries, "tensors": tensors, "announced": announced.zeros(1 << 20)} {
		before := allocated()
		_, err := parse(file.Bytes())
		used := allocated() - before
		require.LessOrEqual(t, used, allocationBound(file.Len()), name)
		if name == "announced" {
			requireInputError(t, err, "truncated?")
			require.LessOrEqual(t, used, uint64(1<<20), "what is not there takes no memory")
		} else {
			require.NoError(t, err, name)
		}
	}
}
