package main

import (
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/optimize"
)

// A report is what optimize --json prints and --report writes.
type report struct {
	Iters             int                    `json:"iters"`
	Evaluations       int                    `json:"evaluations"` // rejected steps included
	Stop              optimize.Stop          `json:"stop"`
	Loss              float64                `json:"loss"` // nats, with regularizers
	Losses            optimize.Losses        `json:"losses"`
	Norms             map[string]float64     `json:"norms"` // by layer, or "shared"
	Layers            []int                  `json:"layers"`
	Kind              loader.Kind            `json:"kind"`
	LR                *float64               `json:"lr,omitempty"` // left out where layers have rates of their own
	LRs               map[string]float64     `json:"lrs"`
	AffineNorms       map[string]affineNorms `json:"affine_norms,omitempty"` // by layer, or "shared"
	OutputConstrained *constrainedReport     `json:"output_constrained,omitempty"`
	Seconds           float64                `json:"seconds"`
	SecondsPerStep    float64                `json:"seconds_per_step"`
	TokensPerStep     int                    `json:"tokens_per_step"`
	PeakRSS           int64                  `json:"peak_rss_bytes"`
	Model             modelReport            `json:"model"`
	File              string                 `json:"file"`
}

// affineNorms are those of each row of a layer's matrices.
type affineNorms struct {
	Left  []float64 `json:"left"`
	Right []float64 `json:"right"`
}

// A constrainedReport tells of the output-constrained stage.
type constrainedReport struct {
	Iters        int             `json:"iters"`
	NormBefore   float64         `json:"norm_before"`
	NormAfter    float64         `json:"norm_after"`
	LossesBefore optimize.Losses `json:"losses_before"`
	LossesAfter  optimize.Losses `json:"losses_after"`
}

type modelReport struct {
	Path         string `json:"path"`
	Arch         string `json:"arch"`
	Embd         int    `json:"n_embd"`
	Layers       int    `json:"n_layer"`
	Quantization string `json:"quantization"`
}

func newReport(r *optimize.Result, info ggmlsteer.Info, modelPath, file string, seconds float64) report {
	report := report{
		Iters: r.Iters, Evaluations: r.Evaluations, Stop: r.Stop, Loss: r.Loss, Losses: r.Losses, Norms: r.Norms,
		Layers: r.Steering.Layers, Kind: r.Steering.Kind, LRs: r.LR,
		Seconds: seconds, SecondsPerStep: r.SecondsPerStep, TokensPerStep: r.TokensPerStep, PeakRSS: peakRSS(),
		Model: modelReport{modelPath, info.Arch, info.Embd, info.Layers, info.Quantization},
		File:  file,
	}
	if s := r.Steering; s.Kind == loader.Affine {
		report.AffineNorms = map[string]affineNorms{}
		for i, p := range s.Params {
			report.AffineNorms[paramsKey(s, i)] = affineNorms{norms(p.Left), norms(p.Right)}
		}
	}
	if c := r.OutputConstrained; c != nil {
		report.OutputConstrained = &constrainedReport{c.Iters, c.NormBefore, c.NormAfter, c.LossesBefore, c.LossesAfter}
	}
	for _, lr := range r.LR {
		if report.LR != nil && *report.LR != lr {
			report.LR = nil
			break
		}
		report.LR = &lr
	}
	return report
}

// peakRSS is the most memory, in bytes, that this process has held. Linux counts
// it anew for each program, which what getrusage tells is not.
func peakRSS() int64 {
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "VmHWM:" {
			if kib, err := strconv.ParseInt(fields[1], 10, 64); err == nil {
				return kib << 10
			}
		}
	}
	var usage syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &usage) != nil {
		return 0
	}
	return int64(usage.Maxrss) << 10
}

// A traceLine is one evaluation of the objective.
type traceLine struct {
	Stage  int                   `json:"stage,omitempty"` // 2 in the output-constrained stage
	Iter   int                   `json:"iter"`
	Loss   float64               `json:"loss"`
	Losses optimize.Losses       `json:"losses"`
	Layers map[string]traceLayer `json:"layers"`
}

type traceLayer struct {
	Norm         float64 `json:"norm"`
	GradientNorm float64 `json:"gradient_norm"`
	*traceTensors
}

// traceTensors are a layer's parameters and the gradient that the optimizer is given.
type traceTensors struct {
	Vector        []float32   `json:"vector"`
	Gradient      []float32   `json:"gradient"`
	Left          [][]float32 `json:"left,omitempty"`
	Right         [][]float32 `json:"right,omitempty"`
	LeftGradient  [][]float32 `json:"left_gradient,omitempty"`
	RightGradient [][]float32 `json:"right_gradient,omitempty"`
}

func newTraceLine(s optimize.Step, tensors bool) traceLine {
	line := traceLine{s.Stage, s.Iter, s.Loss, s.Losses, map[string]traceLayer{}}
	for _, l := range s.Layers {
		layer := traceLayer{Norm: l.Norm, GradientNorm: l.GradientNorm}
		if tensors && l.Params.Vector != nil { // a state keeps none of the steps behind it
			layer.traceTensors = &traceTensors{l.Params.Vector, l.Gradient.Vector, l.Params.Left, l.Params.Right, l.Gradient.Left, l.Gradient.Right}
		}
		line.Layers[l.Layer] = layer
	}
	return line
}

// A trace writes a line for each evaluation.
type trace struct {
	w       io.Writer
	tensors bool
	lines   int
	err     error // the first
}

func (t *trace) step(s optimize.Step) {
	if t.err != nil {
		return
	}
	line, err := encodeJSON(newTraceLine(s, t.tensors))
	if err == nil {
		_, err = t.w.Write(line)
	}
	t.lines++
	t.err = err
}
