package loader

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
)

// TensorData is a tensor to be written.
type TensorData struct {
	Name  string
	Type  TensorType
	Shape []int64 // as in Tensor
	// Data gives exactly the bytes of the tensor, in Type's format.
	Data io.Reader
}

// Floats gives the data of an F32 tensor.
func Floats(values []float32) io.Reader {
	b, _ := binary.Append(make([]byte, 0, 4*len(values)), binary.LittleEndian, values) // fails on types without a size only
	return bytes.NewReader(b)
}

// WriteGGUF writes a GGUF file, version 3, as WriteFile does. Entries and
// tensors come in the order given; the alignment is 32 unless kv has
// general.alignment.
func WriteGGUF(path string, kv []KV, tensors []TensorData) error {
	return WriteFile(path, func(w io.Writer) error { return encodeGGUF(w, kv, tensors) })
}

func encodeGGUF(w io.Writer, kv []KV, tensors []TensorData) error {
	head := []byte(ggufMagic)
	head = binary.LittleEndian.AppendUint32(head, 3)
	head = binary.LittleEndian.AppendUint64(head, uint64(len(tensors)))
	head = binary.LittleEndian.AppendUint64(head, uint64(len(kv)))

	var alignment any
	keys := make(map[string]bool)
	for _, e := range kv {
		if err := checkKey(e.Key); err != nil {
			return err
		}
		if keys[e.Key] {
			return fmt.Errorf("key %q occurs twice", e.Key)
		}
		keys[e.Key] = true
		if e.Key == "general.alignment" {
			alignment = e.Value
		}
		var err error
		if head, err = appendValue(appendText(head, e.Key), e.Value); err != nil {
			return fmt.Errorf("key %q: %w", e.Key, err)
		}
	}
	align, err := alignmentOf(alignment)
	if err != nil {
		return err
	}
	sizes := make([]int64, len(tensors))
	names := make(map[string]bool)
	var offset int64
	for i, t := range tensors {
		if sizes[i], err = checkTensor(t.Name, t.Type, t.Shape); err != nil {
			return err
		}
		if names[t.Name] {
			return fmt.Errorf("tensor %q occurs twice", t.Name)
		}
		names[t.Name] = true
		head = binary.LittleEndian.AppendUint32(appendText(head, t.Name), uint32(len(t.Shape)))
		for _, n := range t.Shape {
			head = binary.LittleEndian.AppendUint64(head, uint64(n))
		}
		head = binary.LittleEndian.AppendUint32(head, uint32(t.Type))
		head = binary.LittleEndian.AppendUint64(head, uint64(offset))
		offset = pad(offset+sizes[i], align)
	}
	zeros := make([]byte, align)
	head = append(head, zeros[:pad(int64(len(head)), align)-int64(len(head))]...)
	if _, err := w.Write(head); err != nil {
		return err
	}
	for i, t := range tensors {
		n, err := io.Copy(w, io.LimitReader(t.Data, sizes[i]))
		if err != nil {
			return err
		}
		if extra, _ := io.CopyN(io.Discard, t.Data, 1); n+extra != sizes[i] {
			return fmt.Errorf("the data of tensor %q is not of the %d bytes that its type and shape say", t.Name, sizes[i])
		}
		if _, err := w.Write(zeros[:pad(n, align)-n]); err != nil {
			return err
		}
	}
	return nil
}

func appendText(b []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint64(b, uint64(len(s))), s...)
}

// appendValue appends the type of a metadata value and the value.
func appendValue(b []byte, value any) ([]byte, error) {
	v := reflect.ValueOf(value)
	if !v.IsValid() {
		return nil, errors.New("no value")
	}
	element := v.Type()
	if v.Kind() == reflect.Slice {
		element = element.Elem()
		b = binary.LittleEndian.AppendUint32(b, uint32(typeArray))
	}
	number, err := valueTypeOf(element)
	if err != nil {
		return nil, err
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(number))
	if v.Kind() == reflect.Slice {
		b = binary.LittleEndian.AppendUint64(b, uint64(v.Len()))
	}
	switch v := value.(type) {
	case string:
		return appendText(b, v), nil
	case []string:
		for _, s := range v {
			b = appendText(b, s)
		}
		return b, nil
	default:
		return binary.Append(b, binary.LittleEndian, v)
	}
}

func valueTypeOf(t reflect.Type) (valueType, error) {
	for number, example := range valueTypes {
		if reflect.TypeOf(example) == t {
			return number, nil
		}
	}
	return 0, fmt.Errorf("GGUF has no type for a Go %v", t)
}

// WriteFile writes a file with the bytes that write gives, in one piece: they
// go to a temporary file beside path, which takes its place once all of it is on
// the disk. Nothing is left behind on an error, and a file that was there stays
// as it was. It is an *InputError where path cannot be written, and otherwise
// the error of write.
func WriteFile(path string, write func(io.Writer) error) error {
	f, target, err := createBeside(path)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails, rightly, after the rename
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<16)
	if err = write(w); err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = os.Rename(f.Name(), target)
	}
	var perr *fs.PathError
	var lerr *os.LinkError
	if errors.As(err, &perr) && perr.Path == f.Name() || errors.As(err, &lerr) {
		return fileError("write", path, err)
	}
	return err
}

// CheckOutput tells, before long work, whether WriteFile could write path. It
// leaves no file, and none as it was not.
func CheckOutput(path string) error {
	f, _, err := createBeside(path)
	if err != nil {
		return err
	}
	f.Close()
	os.Remove(f.Name())
	return nil
}

// createBeside opens a new file in the folder where path is or will be, and
// returns with it the name that it is to get: that of the file which a link at
// path leads to.
func createBeside(path string) (*os.File, string, error) {
	target, mode := path, fs.FileMode(0)
	info, err := os.Stat(path)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return nil, "", inputError(path, "cannot be written: this is not a file but a %s", kindOf(info.Mode()))
	case err == nil:
		if target, err = filepath.EvalSymlinks(path); err != nil {
			return nil, "", fileError("write", path, err)
		}
		// renaming would replace a file that is write-protected
		old, err := os.OpenFile(target, os.O_WRONLY, 0)
		if err != nil {
			return nil, "", fileError("write", path, err)
		}
		old.Close()
		mode = info.Mode().Perm()
	case path == "" || !errors.Is(err, fs.ErrNotExist):
		return nil, "", fileError("write", path, err)
	}
	dir, _ := filepath.Split(target)
	for {
		f, err := os.OpenFile(fmt.Sprintf("%s.llsteer-%08x", dir, rand.Uint32()), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return nil, "", fileError("write", path, err)
		}
		if mode != 0 {
			f.Chmod(mode) // where the disk has no modes, there is none to keep
		}
		return f, target, nil
	}
}
