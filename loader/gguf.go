package loader

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/bits"
	"os"
	"reflect"
	"strings"
)

// GGUF is ggml's file format: metadata (keys and values), then a list of
// tensors, then their data. Files come from anywhere, so whatever one says about
// itself is checked against its size before it is believed, and what llama.cpp
// would end the process over is refused here. Memory stays within a small
// multiple of the metadata's size; tensor data is not read.

// A TensorType is a storage format of ggml, with its number in GGUF files.
type TensorType uint32

// The formats that weights are stored in.
const (
	F32     TensorType = 0
	F16     TensorType = 1
	Q4_0    TensorType = 2
	Q4_1    TensorType = 3
	Q5_0    TensorType = 6
	Q5_1    TensorType = 7
	Q8_0    TensorType = 8
	Q2_K    TensorType = 10
	Q3_K    TensorType = 11
	Q4_K    TensorType = 12
	Q5_K    TensorType = 13
	Q6_K    TensorType = 14
	IQ2_XXS TensorType = 16
	IQ2_XS  TensorType = 17
	IQ3_XXS TensorType = 18
	IQ1_S   TensorType = 19
	IQ4_NL  TensorType = 20
	IQ3_S   TensorType = 21
	IQ2_S   TensorType = 22
	IQ4_XS  TensorType = 23
	IQ1_M   TensorType = 29
	BF16    TensorType = 30
	TQ1_0   TensorType = 34
	TQ2_0   TensorType = 35
	MXFP4   TensorType = 39
)

// layout of a tensor type: each block of so many elements of a row takes so
// many bytes.
type layout struct {
	name         string
	block, bytes int64
	weight       bool // ggml multiplies with it and looks rows up in it
}

var layouts = map[TensorType]layout{
	F32:     {"F32", 1, 4, true},
	F16:     {"F16", 1, 2, true},
	BF16:    {"BF16", 1, 2, true},
	Q4_0:    {"Q4_0", 32, 18, true},
	Q4_1:    {"Q4_1", 32, 20, true},
	Q5_0:    {"Q5_0", 32, 22, true},
	Q5_1:    {"Q5_1", 32, 24, true},
	Q8_0:    {"Q8_0", 32, 34, true},
	9:       {"Q8_1", 32, 36, false},
	Q2_K:    {"Q2_K", 256, 84, true},
	Q3_K:    {"Q3_K", 256, 110, true},
	Q4_K:    {"Q4_K", 256, 144, true},
	Q5_K:    {"Q5_K", 256, 176, true},
	Q6_K:    {"Q6_K", 256, 210, true},
	15:      {"Q8_K", 256, 292, false},
	IQ2_XXS: {"IQ2_XXS", 256, 66, true},
	IQ2_XS:  {"IQ2_XS", 256, 74, true},
	IQ3_XXS: {"IQ3_XXS", 256, 98, true},
	IQ1_S:   {"IQ1_S", 256, 50, true},
	IQ4_NL:  {"IQ4_NL", 32, 18, true},
	IQ3_S:   {"IQ3_S", 256, 110, true},
	IQ2_S:   {"IQ2_S", 256, 82, true},
	IQ4_XS:  {"IQ4_XS", 256, 136, true},
	24:      {"I8", 1, 1, false},
	25:      {"I16", 1, 2, false},
	26:      {"I32", 1, 4, false},
	27:      {"I64", 1, 8, false},
	28:      {"F64", 1, 8, false},
	IQ1_M:   {"IQ1_M", 256, 56, true},
	TQ1_0:   {"TQ1_0", 256, 54, true},
	TQ2_0:   {"TQ2_0", 256, 66, true},
	MXFP4:   {"MXFP4", 32, 17, true},
}

// String is the type's name in ggml, in capitals.
func (t TensorType) String() string {
	if l, ok := layouts[t]; ok {
		return l.name
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// A KV is one entry of a file's metadata. Value is a bool, a string, a uint8,
// int8, uint16, int16, uint32, int32, uint64, int64, float32 or float64, or a
// slice of one of these.
type KV struct {
	Key   string
	Value any
}

// A Tensor is an entry of a file's list of tensors.
type Tensor struct {
	Name  string
	Type  TensorType
	Shape []int64 // 1 to 4 dimensions, in ggml's order: elements of a row first
	Bytes int64

	offset int64 // of its data, from the file's beginning
}

// A valueType is the number that GGUF gives to the type of a value.
type valueType uint32

const (
	typeString valueType = 8
	typeArray  valueType = 9
)

// valueTypes are the types by their numbers, as examples; arrays are slices.
var valueTypes = map[valueType]any{
	0: uint8(0), 1: int8(0), 2: uint16(0), 3: int16(0), 4: uint32(0), 5: int32(0),
	6: float32(0), 7: false, typeString: "", 10: uint64(0), 11: int64(0), 12: float64(0),
}

// typeName is how GGUF calls the type of a value: "u32", "array of f32".
func typeName(value any) string {
	switch t := reflect.TypeOf(value); t.Kind() {
	case reflect.Slice:
		return "array of " + typeName(reflect.Zero(t.Elem()).Interface())
	case reflect.Bool, reflect.String:
		return t.Kind().String()
	default:
		return strings.NewReplacer("uint", "u", "int", "i", "float", "f").Replace(t.Kind().String())
	}
}

const (
	ggufMagic = "GGUF"
	// Metadata of the largest vocabularies takes some 20 MB. The bounds keep a
	// hostile file from taking much memory here, and much time in llama.cpp,
	// which compares each key and name with all before it.
	maxMetadata = 256 << 20
	maxEntries  = 1 << 16
	// llama.cpp keeps names in 64 bytes, a zero included.
	maxTensorName    = 63
	defaultAlignment = 32
)

// ggufFile is what a GGUF file says about its contents.
type ggufFile struct {
	path    string
	in      io.ReaderAt
	size    int64
	version uint32
	kv      []KV
	keys    map[string]int // indexes into kv
	tensors []Tensor
	align   int64
}

// openGGUF reads the metadata of a file and calls use, which may read tensors.
func openGGUF(path string, use func(*ggufFile) error) error {
	// Not opened before it is known to be a file: opening a pipe would wait.
	info, err := os.Stat(path)
	if err != nil {
		return fileError("read", path, err)
	}
	if !info.Mode().IsRegular() {
		return inputError(path, "this is not a file but a %s", kindOf(info.Mode()))
	}
	in, err := os.Open(path)
	if err != nil {
		return fileError("read", path, err)
	}
	defer in.Close()
	g, err := parseGGUF(path, in, info.Size())
	if err != nil {
		return err
	}
	return use(g)
}

func kindOf(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "folder"
	case mode&fs.ModeNamedPipe != 0:
		return "pipe"
	default:
		return "device"
	}
}

// inputError is about the file at path.
func inputError(path, format string, args ...any) *InputError {
	return &InputError{Message: path + ": " + fmt.Sprintf(format, args...)}
}

// fileError turns an error of the operating system into one for the user.
func fileError(what, path string, err error) *InputError {
	var perr *fs.PathError
	if errors.As(err, &perr) {
		err = perr.Err
	}
	var lerr *os.LinkError
	if errors.As(err, &lerr) {
		err = lerr.Err
	}
	return inputError(path, "cannot %s this file: %v", what, err)
}

// parseGGUF reads metadata and tensor list of a file of the given size.
func parseGGUF(path string, in io.ReaderAt, size int64) (*ggufFile, error) {
	g := &ggufFile{path: path, in: in, size: size, keys: map[string]int{}, align: defaultAlignment}
	r := &reader{path: path, size: size}
	r.in = bufio.NewReaderSize(io.NewSectionReader(in, 0, size), 1<<16)

	magic := string(r.bytes(uint64(min(size, 4)), "the magic number"))
	if r.err == nil && magic != ggufMagic {
		if size == 0 {
			return nil, inputError(path, "the file is empty")
		}
		return nil, inputError(path, "not a GGUF file: it begins with %q, expected %q", magic, ggufMagic)
	}
	g.version = r.u32("the version")
	if err := r.err; err != nil {
		return nil, err
	}
	switch v := g.version; {
	case v == 2 || v == 3:
	case v == 1:
		return nil, &InputError{
			Message: path + ": this is GGUF version 1, and llama.cpp reads versions 2 and 3",
			Hint:    "convert the model again with a current llama.cpp",
		}
	case v != 0 && v&0xffff == 0:
		return nil, inputError(path, "this GGUF file was written for a big-endian machine, and llsteer reads little-endian ones")
	default:
		return nil, inputError(path, "this is GGUF version %d, expected 2 or 3", v)
	}
	tensors := r.count("tensors", 8+1+4+8+4+8)
	entries := r.count("metadata entries", 8+1+4+1)
	for i := 0; i < entries && r.err == nil; i++ {
		g.parseKV(r, i)
	}
	if r.err == nil {
		g.align, r.err = alignmentOf(g.get("general.alignment"))
		r.err = r.located(r.err)
	}
	names := make(map[string]bool)
	var next int64 // where the following tensor's data begins, from the first's
	for i := 0; i < tensors && r.err == nil; i++ {
		next = g.parseTensor(r, i, next, names)
	}
	if r.err != nil {
		return nil, r.err
	}
	data := pad(r.pos, g.align)
	for i := range g.tensors {
		t := &g.tensors[i]
		t.offset += data
		if t.Bytes > size-t.offset {
			return nil, inputError(path, "tensor %q needs bytes %d to %d, but the file ends at %d (truncated?)", t.Name, t.offset, t.offset+t.Bytes, size)
		}
	}
	return g, nil
}

func (g *ggufFile) parseKV(r *reader, i int) {
	key := r.text(fmt.Sprintf("the key of metadata entry %d", i))
	if r.err != nil {
		return
	}
	if err := checkKey(key); err != nil {
		r.fail("metadata entry %d: %v", i, err)
		return
	}
	if _, twice := g.keys[key]; twice {
		r.fail("key %q occurs twice", key)
		return
	}
	what := fmt.Sprintf("the value of %q", key)
	var value any
	t := valueType(r.u32(what))
	if t == typeArray {
		value = r.array(key, what)
	} else {
		value = r.value(t, key, what)
	}
	if r.err != nil {
		return
	}
	g.keys[key] = len(g.kv)
	g.kv = append(g.kv, KV{key, value})
}

// parseTensor reads one entry of the tensor list and returns where the next
// tensor's data begins. Offsets count from the end of the list until that is known.
func (g *ggufFile) parseTensor(r *reader, i int, begin int64, names map[string]bool) int64 {
	t := Tensor{Name: r.text(fmt.Sprintf("the name of tensor %d", i))}
	what := fmt.Sprintf("the description of tensor %q", t.Name)
	dims := r.u32(what)
	if r.err != nil {
		return 0
	}
	if dims > 4 {
		r.fail("tensor %q has %d dimensions, expected at most 4", t.Name, dims)
		return 0
	}
	for range dims {
		t.Shape = append(t.Shape, int64(r.u64(what)))
	}
	if dims == 0 { // a single number
		t.Shape = []int64{1}
	}
	t.Type = TensorType(r.u32(what))
	offset := r.u64(what)
	if r.err != nil {
		return 0
	}
	var err error
	if t.Bytes, err = checkTensor(t.Name, t.Type, t.Shape); err != nil {
		r.fail("%v", err)
		return 0
	}
	if names[t.Name] {
		r.fail("tensor %q occurs twice", t.Name)
		return 0
	}
	names[t.Name] = true
	// llama.cpp takes no gaps, and without gaps nothing overlaps.
	if offset != uint64(begin) {
		r.fail("tensor %q begins at byte %d of the data, expected %d: each tensor follows the one before it, aligned to %d bytes", t.Name, offset, begin, g.align)
		return 0
	}
	if t.Bytes > r.size-begin {
		r.fail("tensor %q needs bytes %d to %d of the data, but the whole file has %d (truncated?)", t.Name, begin, uint64(begin)+uint64(t.Bytes), r.size)
		return 0
	}
	t.offset = begin
	g.tensors = append(g.tensors, t)
	return pad(begin+t.Bytes, g.align)
}

// pad rounds n up to a multiple of align. Both are far below the largest
// int64: sizes of files that exist, and at most 1<<31.
func pad(n, align int64) int64 { return (n + align - 1) &^ (align - 1) }

// alignmentOf is the alignment that the metadata asks for.
func alignmentOf(value any) (int64, error) {
	switch a := value.(type) {
	case nil:
		return defaultAlignment, nil
	case uint32:
		if a >= 8 && a&(a-1) == 0 {
			return int64(a), nil
		}
		return 0, fmt.Errorf("general.alignment is %d, expected a power of 2 from 8 on", a)
	default:
		return 0, fmt.Errorf("general.alignment is of type %s, expected u32", typeName(value))
	}
}

func checkKey(key string) error {
	switch {
	case key == "":
		return errors.New("the key is empty")
	case len(key) > math.MaxUint16:
		return fmt.Errorf("the key has %d bytes, and GGUF allows %d", len(key), math.MaxUint16)
	case strings.ContainsRune(key, 0):
		return fmt.Errorf("key %q contains a zero byte", key) // where llama.cpp's comparison would end
	}
	return nil
}

// checkTensor returns how many bytes a tensor takes.
func checkTensor(name string, t TensorType, shape []int64) (int64, error) {
	switch {
	case name == "":
		return 0, errors.New("a tensor has no name")
	case len(name) > maxTensorName:
		return 0, fmt.Errorf("tensor %q has a name of %d bytes, expected at most %d", name, len(name), maxTensorName)
	case strings.ContainsRune(name, 0):
		return 0, fmt.Errorf("tensor %q has a zero byte in its name", name)
	case len(shape) < 1 || len(shape) > 4:
		return 0, fmt.Errorf("tensor %q has %d dimensions, expected 1 to 4", name, len(shape))
	}
	l, ok := layouts[t]
	if !ok {
		return 0, fmt.Errorf("tensor %q is of %v, which ggml does not know", name, t)
	}
	elements := uint64(1)
	for _, n := range shape {
		if n < 1 {
			return 0, fmt.Errorf("tensor %q has the shape %v, expected positive dimensions", name, shape)
		}
		high, low := bits.Mul64(elements, uint64(n))
		if high != 0 || low > math.MaxInt64/8 { // 8: bytes of the widest element
			return 0, fmt.Errorf("tensor %q has the shape %v, with more elements than any file holds", name, shape)
		}
		elements = low
	}
	if shape[0]%l.block != 0 {
		return 0, fmt.Errorf("tensor %q has rows of %d elements, expected a multiple of %d, the block of %v", name, shape[0], l.block, t)
	}
	return int64(elements) / l.block * l.bytes, nil
}

// get is the value of a key, or nil.
func (g *ggufFile) get(key string) any {
	if i, ok := g.keys[key]; ok {
		return g.kv[i].Value
	}
	return nil
}

// lookup returns the value of a key that may be missing, but not be of another type.
func lookup[T any](g *ggufFile, key string) (value T, found bool, err error) {
	any := g.get(key)
	if any == nil {
		return value, false, nil
	}
	value, found = any.(T)
	if !found {
		return value, false, inputError(g.path, "key %q is of type %s, expected %s", key, typeName(any), typeName(value))
	}
	return value, true, nil
}

// needed returns the value of a key that must be there.
func needed[T any](g *ggufFile, key string) (T, error) {
	value, found, err := lookup[T](g, key)
	if err == nil && !found {
		err = inputError(g.path, "key %q is missing, expected %s", key, typeName(value))
	}
	return value, err
}

// read is needed for one of several keys: it does nothing after an error.
func read[T any](g *ggufFile, key string, to *T, err *error) {
	if *err != nil {
		return
	}
	value, e := needed[T](g, key)
	*to, *err = value, e
}

// floats reads the data of an F32 tensor. It takes as much memory as the
// tensor does in the file.
func (g *ggufFile) floats(t Tensor) ([]float32, error) {
	values := make([]float32, t.Bytes/4)
	in := io.NewSectionReader(g.in, t.offset, t.Bytes)
	if err := binary.Read(bufio.NewReaderSize(in, 1<<16), binary.LittleEndian, values); err != nil {
		return nil, fileError("read", g.path, err)
	}
	return values, nil
}

// A reader takes a file's metadata from its beginning to its end, and
// remembers the first error; after it everything read is zero.
type reader struct {
	path string
	in   *bufio.Reader
	pos  int64
	size int64
	err  error

	scratch []byte
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = inputError(r.path, format, args...)
	}
}

// located puts the file's path before an error.
func (r *reader) located(err error) error {
	if err == nil {
		return nil
	}
	return inputError(r.path, "%v", err)
}

// need checks that n more bytes are there. what is for the message.
func (r *reader) need(n uint64, what string) bool {
	switch {
	case r.err != nil:
	case n > uint64(r.size-r.pos):
		r.fail("%s takes %d bytes from byte %d on, but the file ends at %d (truncated?)", what, n, r.pos, r.size)
	case r.pos+int64(n) > maxMetadata:
		r.fail("%s goes beyond byte %d, and no model's metadata is that long", what, int64(maxMetadata))
	}
	return r.err == nil
}

// bytes returns the next n bytes; they are overwritten by the next call.
func (r *reader) bytes(n uint64, what string) []byte {
	if !r.need(n, what) {
		return nil
	}
	if uint64(cap(r.scratch)) < n {
		r.scratch = make([]byte, n)
	}
	b := r.scratch[:n]
	if _, err := io.ReadFull(r.in, b); err != nil {
		r.err = fileError("read", r.path, err)
		return nil
	}
	r.pos += int64(n)
	return b
}

func (r *reader) u32(what string) uint32 {
	if b := r.bytes(4, what); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64(what string) uint64 {
	if b := r.bytes(8, what); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *reader) text(what string) string {
	return string(r.bytes(r.u64(what), what))
}

// count reads how many of something follow, each of at least so many bytes.
func (r *reader) count(what string, least uint64) int {
	n := r.u64("the number of " + what)
	switch {
	case r.err != nil:
		return 0
	case n > uint64(r.size-r.pos)/least:
		r.fail("%d %s are announced, but only %d bytes follow (truncated?)", n, what, r.size-r.pos)
		return 0
	case n > maxEntries:
		r.fail("%d %s are announced, expected at most %d", n, what, maxEntries)
		return 0
	}
	return int(n)
}

func (r *reader) value(t valueType, key, what string) any {
	example, ok := valueTypes[t]
	switch {
	case r.err != nil:
		return nil
	case !ok:
		r.fail("key %q is of type %d, which GGUF does not have", key, t)
		return nil
	case t == typeString:
		return r.text(what)
	}
	value := reflect.New(reflect.TypeOf(example))
	r.numbers(value.Interface(), key, what)
	return value.Elem().Interface()
}

func (r *reader) array(key, what string) any {
	t := valueType(r.u32(what))
	n := r.u64(what)
	example, ok := valueTypes[t]
	switch {
	case r.err != nil:
		return nil
	case t == typeArray:
		r.fail("key %q is an array of arrays, which llama.cpp does not read", key)
		return nil
	case !ok:
		r.fail("key %q is an array of type %d, which GGUF does not have", key, t)
		return nil
	}
	size := uint64(8) // of an empty string
	if t != typeString {
		size = uint64(reflect.TypeOf(example).Size())
	}
	if n > math.MaxInt64/8 || !r.need(n*size, what) {
		r.fail("%s has %d elements, but the file ends at %d (truncated?)", what, n, r.size)
		return nil
	}
	if t == typeString {
		texts := make([]string, 0, min(n, 1<<12)) // grows as strings are really there
		for range n {
			texts = append(texts, r.text(what))
			if r.err != nil {
				return nil
			}
		}
		return texts
	}
	values := reflect.MakeSlice(reflect.SliceOf(reflect.TypeOf(example)), int(n), int(n))
	r.numbers(values.Interface(), key, what)
	return values.Interface()
}

// numbers fills a slice, or what a pointer points at.
func (r *reader) numbers(into any, key, what string) {
	b := r.bytes(uint64(binary.Size(into)), what)
	if r.err != nil {
		return
	}
	switch into.(type) {
	case *bool, []bool:
		for _, c := range b {
			if c > 1 {
				r.fail("key %q holds %d for a bool, expected 0 or 1", key, c)
				return
			}
		}
	}
	if _, err := binary.Decode(b, binary.LittleEndian, into); err != nil {
		r.fail("key %q: %v", key, err)
	}
}
