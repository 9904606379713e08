// A worker for lane="command" in Go: counts the words of each text. One JSON object per line comes on stdin,
// {"id": 7, "input": "some text"}; each is answered on stdout, in any order, with {"id": 7, "output": {...}} or
// {"id": 7, "error": "..."}. The end of stdin ends it.
//
//	go build -o words . && duodao map --protocol jsonl --workers 1 --command ./words texts.jsonl
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"runtime"
	"sort"
	"sync"
)

type call struct {
	ID    int64           `json:"id"`
	Input json.RawMessage `json:"input"`
}

type answer struct {
	ID     int64  `json:"id"`
	Output *count `json:"output,omitempty"`
	Error  string `json:"error,omitempty"`
}

type count struct {
	Words    int     `json:"words"`
	Distinct int     `json:"distinct"`
	Top      [][]any `json:"top"`
}

// words counts runs of ASCII letters, whatever their case; top has the five most frequent, then by the alphabet.
func words(text []byte) *count {
	seen := make(map[string]int)
	total := 0
	start := -1
	lower := make([]byte, len(text)+1) // ends with a byte that is no letter
	for at, char := range text {
		if 'A' <= char && char <= 'Z' {
			char += 'a' - 'A'
		}
		lower[at] = char
	}
	for at, char := range lower {
		letter := 'a' <= char && char <= 'z'
		if letter && start < 0 {
			start = at
		} else if !letter && start >= 0 {
			seen[string(lower[start:at])]++
			total++
			start = -1
		}
	}
	names := make([]string, 0, len(seen))
	for name := range seen {
		names = append(names, name)
	}
	sort.Slice(names, func(i, j int) bool {
		if seen[names[i]] != seen[names[j]] {
			return seen[names[i]] > seen[names[j]]
		}
		return names[i] < names[j]
	})
	top := [][]any{}
	for _, name := range names[:min(5, len(names))] {
		top = append(top, []any{name, seen[name]})
	}
	return &count{total, len(seen), top}
}

func reply(line []byte) answer {
	var asked call
	var text string
	if err := json.Unmarshal(line, &asked); err != nil {
		return answer{Error: err.Error()}
	}
	if err := json.Unmarshal(asked.Input, &text); err != nil {
		return answer{ID: asked.ID, Error: "a text is needed: " + err.Error()}
	}
	return answer{ID: asked.ID, Output: words([]byte(text))}
}

func main() {
	lines := make(chan []byte)
	var done sync.WaitGroup
	var lock sync.Mutex // a line is written whole
	for range runtime.GOMAXPROCS(0) {
		done.Add(1)
		go func() {
			defer done.Done()
			for line := range lines {
				text, err := json.Marshal(reply(line))
				if err != nil {
					panic(err)
				}
				lock.Lock()
				os.Stdout.Write(append(text, '\n'))
				lock.Unlock()
			}
		}()
	}
	in := bufio.NewReaderSize(os.Stdin, 1<<16)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 1 {
			lines <- line
		}
		if err != nil {
			break
		}
	}
	close(lines)
	done.Wait()
}
