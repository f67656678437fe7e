package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/llsteer/llsteer/loader"
)

// writeNPY writes an array as numpy's format 1.0 has it, float32 in row order: a whole
// file or none. rows are its last dimension.
func writeNPY(path string, shape []int, rows [][]float32) error {
	return loader.WriteFile(path, func(w io.Writer) error {
		buffered := bufio.NewWriter(w)
		buffered.WriteString(npyHeader(shape))
		for _, row := range rows {
			if err := binary.Write(buffered, binary.LittleEndian, row); err != nil {
				return err
			}
		}
		return buffered.Flush() // with the first error there was
	})
}

// npyHeader is padded so that the numbers begin at a multiple of 64 bytes. There are at
// least two dimensions: Python writes a tuple of one otherwise.
func npyHeader(shape []int) string {
	const magic, alignment = "\x93NUMPY\x01\x00", 64
	sizes := make([]string, len(shape))
	for i, n := range shape {
		sizes[i] = strconv.Itoa(n)
	}
	text := fmt.Sprintf("{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }", strings.Join(sizes, ", "))
	used := len(magic) + 2 + len(text) + 1
	text += strings.Repeat(" ", (alignment-used%alignment)%alignment) + "\n"
	return magic + string(binary.LittleEndian.AppendUint16(nil, uint16(len(text)))) + text
}
