package ggmlsteer

import (
	"context"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/llsteer/llsteer/loader"
	"github.com/stretchr/testify/require"
)

// A quantization makes blocks of random numbers, of a standard deviation of about size,
// and says what numbers they are, after ggml-quants.c.
type quantization struct {
	kind   loader.TensorType
	values int // of a block
	block  func(random *rand.Rand, size float64) []byte
	floats func(block []byte) []float32
}

var quantizations = []quantization{
	{loader.F16, 1,
		func(random *rand.Rand, size float64) []byte { return half(size * random.NormFloat64()) },
		func(b []byte) []float32 { return []float32{fromHalf(b)} }},
	{loader.BF16, 1,
		func(random *rand.Rand, size float64) []byte {
			return binary.LittleEndian.AppendUint16(nil, uint16(math.Float32bits(float32(size*random.NormFloat64()))>>16))
		},
		func(b []byte) []float32 {
			return []float32{math.Float32frombits(uint32(binary.LittleEndian.Uint16(b)) << 16)}
		}},
	// d, q[32]: d·q
	{loader.Q8_0, 32,
		func(random *rand.Rand, size float64) []byte {
			return append(scale(random, size/74), bytesOf(random, 32)...)
		},
		func(b []byte) (y []float32) {
			d := fromHalf(b)
			for _, q := range b[2:] {
				y = append(y, d*float32(int8(q)))
			}
			return y
		}},
	// d, q[16] of two numbers each, the second ones in the block's second half: d·(q − 8)
	{loader.Q4_0, 32,
		func(random *rand.Rand, size float64) []byte {
			return append(scale(random, size/4.6), bytesOf(random, 16)...)
		},
		func(b []byte) []float32 {
			d, y := fromHalf(b), make([]float32, 32)
			for i, q := range b[2:] {
				y[i], y[i+16] = d*(float32(q&15)-8), d*(float32(q>>4)-8)
			}
			return y
		}},
	// d, dmin, eight scales and minima of 6 bits in 12 bytes, q[128]: d·scale·q − dmin·min for 32 numbers each
	{loader.Q4_K, 256,
		func(random *rand.Rand, size float64) []byte {
			return slices.Concat(scale(random, size/259), scale(random, 7.5*size/259), bytesOf(random, 12+128))
		},
		func(b []byte) (y []float32) {
			d, dmin, packed, q := fromHalf(b), fromHalf(b[2:]), b[4:16], b[16:]
			for part := range 8 {
				var factor, least byte
				if part < 4 {
					factor, least = packed[part]&63, packed[part+4]&63
				} else {
					factor = packed[part+4]&15 | packed[part-4]>>6<<4
					least = packed[part+4]>>4 | packed[part]>>6<<4
				}
				for _, two := range q[part/2*32:][:32] {
					y = append(y, d*float32(factor)*float32(two>>(part%2*4)&15)-dmin*float32(least))
				}
			}
			return y
		}},
	// low[128] of 4 bits, high[64] of 2 bits, signed scales[16], d: d·scale·(q − 32) for 16 numbers each
	{loader.Q6_K, 256,
		func(random *rand.Rand, size float64) []byte {
			return append(bytesOf(random, 128+64+16), scale(random, size/1360)...)
		},
		func(b []byte) (y []float32) {
			low, high, scales, d := b[:128], b[128:192], b[192:208], fromHalf(b[208:])
			for i := range 256 {
				within, quarter, l := i%128, i%128/32, i%32
				four := low[i/128*64+within%64] >> (within / 64 * 4) & 15
				two := high[i/128*32+l] >> (2 * quarter) & 3
				y = append(y, d*float32(int8(scales[i/16]))*float32(int(four|two<<4)-32))
			}
			return y
		}},
}

func bytesOf(random *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	return b
}

func scale(random *rand.Rand, size float64) []byte { return half(size * (0.5 + random.Float64())) }

// half is a float16 next to x, towards 0, of a size below 65504.
func half(x float64) []byte {
	bits := math.Float32bits(float32(x))
	sign, exponent, fraction := uint16(bits>>16&0x8000), int(bits>>23&0xff)-112, bits&0x7fffff|0x800000
	switch {
	case exponent < -10:
		return binary.LittleEndian.AppendUint16(nil, sign)
	case exponent <= 0: // subnormal
		return binary.LittleEndian.AppendUint16(nil, sign|uint16(fraction>>(14-exponent)))
	}
	return binary.LittleEndian.AppendUint16(nil, sign|uint16(exponent<<10)|uint16(fraction>>13&0x3ff))
}

func fromHalf(b []byte) float32 {
	bits := binary.LittleEndian.Uint16(b)
	sign, exponent, fraction := 1-2*float64(bits>>15), int(bits>>10&31), float64(bits&0x3ff)
	if exponent == 0 {
		return float32(sign * math.Ldexp(fraction, -24))
	}
	return float32(sign * math.Ldexp(1024+fraction, exponent-25))
}

func TestHalf(t *testing.T) {
	for _, test := range []struct {
		bits  uint16
		value float32
	}{{0x3c00, 1}, {0xc000, -2}, {0x3555, 0.333251953125}, {0x7bff, 65504}, {0x0400, 6.103515625e-05}, {0x03ff, 6.097555160522461e-05}, {0x8001, -5.960464477539063e-08}, {0, 0}} {
		b := binary.LittleEndian.AppendUint16(nil, test.bits)
		require.Equal(t, test.value, fromHalf(b))
		require.Equal(t, b, half(float64(test.value)))
	}
}

// quantizedModel is a llama whose matrices are of the kinds that choose gives, and the
// same model with those numbers in F32.
func quantizedModel(t *testing.T, tied bool, choose func(matrix int) quantization) (quantized, dequantized *Model) {
	kv, tensors := llamaModel(2, 64)
	if tied { // the embedding is the output matrix, too
		tensors = slices.DeleteFunc(tensors, func(w tensor) bool { return w.name == "output.weight" })
	}
	random := rand.New(rand.NewPCG(12, 12))
	plain := slices.Clone(tensors)
	matrix := 0
	for i, w := range tensors {
		size := 0.8 / math.Sqrt(float64(w.shape[0]))
		if strings.HasPrefix(w.name, "token_embd") {
			size = 0.3
		}
		var numbers []float32
		if len(w.shape) == 1 {
			numbers = randomWeights(random, "llama", w)
			tensors[i].kind, tensors[i].data = loader.F32, floatBytes(numbers)
		} else {
			q := choose(matrix)
			matrix++
			tensors[i].kind = q.kind
			for range elements(w.shape) / q.values {
				block := q.block(random, size)
				tensors[i].data = append(tensors[i].data, block...)
				numbers = append(numbers, q.floats(block)...)
			}
		}
		plain[i].kind, plain[i].data = loader.F32, floatBytes(numbers)
	}
	return openModel(t, writeModel(t, "llama", kv, tensors)), openModel(t, writeModel(t, "llama", kv, plain))
}

func floatBytes(x []float32) []byte {
	b, _ := binary.Append(nil, binary.LittleEndian, x) // fails on types without a size only
	return b
}

// In Precision F32 quantized weights are the numbers that they stand for: probabilities,
// gradients and logits are those of the same model in F32.
func TestQuantizedAsDequantized(t *testing.T) {
	compare := func(name string, tied bool, choose func(int) quantization) {
		t.Run(name, func(t *testing.T) {
			quantized, dequantized := quantizedModel(t, tied, choose)
			random := rand.New(rand.NewPCG(13, 13))
			width, vocab := quantized.info.Embd, quantized.info.Vocab
			prompt := randomTokens(random, 9, vocab)
			var sequences []Sequence
			for _, n := range []int{1, 12, 21} { // more and fewer than the kernels take at a time
				tokens := append(slices.Clone(prompt), randomTokens(random, n, vocab)...)
				sequences = append(sequences, Sequence{Tokens: tokens, Prompt: len(prompt), Vector: [][]float32{ones(len(tokens))}, Matrix: [][]float32{ones(len(tokens))}})
			}
			var ops []Operation
			for range 2 {
				row := func() [][]float32 { return [][]float32{randomVector(random, width, 1)} }
				ops = append(ops, Operation{Vectors: row(), Left: row(), Right: row()})
			}
			var probs [2][][]Prob
			var gradients [2][]Operation
			var logits, ordinary [2][][]float32
			for i, m := range []*Model{dequantized, quantized} {
				s, err := m.NewSession(SessionOptions{Layers: []int{0, 1}, Vectors: 1, Rank: 1, Coldness: 1}, sequences)
				require.NoError(t, err)
				defer s.Close()
				probs[i], err = s.Forward(context.Background(), ops)
				require.NoError(t, err)
				var weights [][]float64
				for _, q := range sequences {
					weights = append(weights, slices.Repeat([]float64{1}, len(q.Tokens)-q.Prompt))
				}
				gradients[i], err = s.Backward(context.Background(), weights)
				require.NoError(t, err)
				logits[i] = textLogits(t, newDecoder(t, m, DecoderOptions{Context: 64, Precision: F32}), sequences[2].Tokens, 1)
				d := newDecoder(t, m, DecoderOptions{Context: 64, Precision: F32})
				logits[i] = append(logits[i], nextLogits(t, d, prompt)...)
				ordinary[i] = textLogits(t, newDecoder(t, m, DecoderOptions{Context: 64}), sequences[2].Tokens, 1)
			}
			most := 0.0
			for i := range sequences {
				for j := range probs[0][i] {
					near(t, probs[0][i][j].Log, probs[1][i][j].Log, logProbTolerance, "log p of target %d of sequence %d", j, i)
				}
			}
			expected, found := rowsOf(gradients[0]), rowsOf(gradients[1])
			for i := range expected {
				nearVector(t, expected[i], found[i], gradientTolerance, "row %d of the gradient", i)
				most = max(most, distance(expected[i], found[i])/distance(expected[i], make([]float32, width)))
			}
			nearRows(t, logits[0], logits[1], "decoded")
			t.Logf("error of the gradient %.1e; logits of ordinary decoding are %.1e apart", most, farthest(ordinary[0], ordinary[1]))
			// what ordinary decoding rounds is far above the tolerance: it would be seen here
			require.Greater(t, farthest(ordinary[0], ordinary[1]), 5*logitTolerance)
		})
	}
	for _, q := range quantizations {
		compare(q.kind.String(), false, func(int) quantization { return q })
	}
	compare("every kind", false, func(matrix int) quantization { return quantizations[matrix%len(quantizations)] })
	compare("every kind, tied", true, func(matrix int) quantization { return quantizations[(matrix+5)%len(quantizations)] })
}

func farthest(a, b [][]float32) float64 {
	most := 0.0
	for i := range a {
		for j := range a[i] {
			most = max(most, math.Abs(float64(a[i][j])-float64(b[i][j])))
		}
	}
	return most
}
