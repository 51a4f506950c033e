{{- /* The settings as the service will read them, as JSON: the TOML, and .Values.overrides over it. */}}
{{- define "synod.settings" -}}
{{- $settings := include "synod.config" . | fromToml -}}
{{- if hasKey $settings "Error" -}}
{{- fail (printf "config is no TOML: %s" $settings.Error) -}}
{{- end -}}
{{- range $name, $value := .Values.overrides -}}
{{- $read := printf "value = %v" $value | fromToml -}}
{{- $tree := hasKey $read "Error" | ternary $value $read.value -}}
{{- range $key := trimPrefix "SYNOD__" $name | lower | splitList "__" | reverse -}}
{{- $tree = dict $key $tree -}}
{{- end -}}
{{- $settings = mergeOverwrite $settings $tree -}}
{{- end -}}
{{- toJson $settings -}}
{{- end }}

{{- /* Fails where Kubernetes would refuse the objects' names: a Service's and a RayService's are DNS-1035 labels. */}}
{{- define "synod.checkNames" -}}
{{- $name := include "synod.fullname" . -}}
{{- $label := "^[a-z]([-a-z0-9]*[a-z0-9])?$" -}}
{{- $rule := "a Kubernetes Service's name has lower-case letters, digits and '-' only, starts with a letter and ends with a letter or digit" -}}
{{- if not (regexMatch $label $name) -}}
{{- $from := printf "release name '%s' and nameOverride '%s' give" .Release.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- $from = printf "fullnameOverride '%s' gives" .Values.fullnameOverride -}}
{{- end -}}
{{- fail (printf "%s the objects the name '%s', but %s: set fullnameOverride to such a name of at most 36 characters, or choose another release name" $from $name $rule) -}}
{{- end -}}
{{- if and .Values.nameOverride (not (regexMatch "^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$" .Values.nameOverride)) -}}
{{- fail (printf "nameOverride '%s' is also a label, which has at most 63 letters, digits, '-', '_' and '.', and starts and ends with a letter or digit: give such a value" .Values.nameOverride) -}}
{{- end -}}
{{- end }}

{{- /* Fails where a gateway could not open its ports, because Ray has them in its pod. */}}
{{- define "synod.checkPorts" -}}
{{- $port := int .Values.gateway.port -}}
{{- $grpc := int .Values.gateway.grpcPort -}}
{{- if eq $port $grpc -}}
{{- fail (printf "gateway.port and gateway.grpcPort are both %d: give them two" $port) -}}
{{- end -}}
{{- range $field, $one := dict "port" $port "grpcPort" $grpc -}}
{{- if or (has $one (list 8080 52365)) (and (ge $one 10002) (le $one 19999)) -}}
{{- fail (printf "gateway.%s is %d, which is Ray's in a gateway's pod: give one that is not 8080, 52365 or from 10002 to 19999" $field $one) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* Fails where replicas could never find room in the scorers' pods: what [scorers.*.serving] may grow to, against what the
groups may. A sum that fits may still not pack: a share of a GPU does not span two. */}}
{{- define "synod.checkCapacity" -}}
{{- $auto := .Values.autoscaling.enabled -}}
{{- $gpu := .Values.scorers.gpu -}}
{{- $field := $auto | ternary "maxReplicas" "replicas" -}}
{{- $gpus := 0 -}}
{{- $cpus := 0 -}}
{{- $groups := include "synod.scorerGroups" . | fromJson -}}
{{- range $groups -}}
{{- $gpus = add $gpus (mul .gpus (index . $field)) -}}
{{- $cpus = add $cpus (mul .logicalCpus (index . $field)) -}}
{{- end -}}
{{- $asked := dict "num_cpus" 0.0 "num_gpus" 0.0 -}}
{{- range $name, $scorer := (include "synod.settings" . | fromJson).scorers -}}
{{- if not $scorer.kind -}}
{{- fail (printf "overrides.SYNOD__SCORERS__%s__...: config has no [scorers.%s]; take the override out" (upper $name) $name) -}}
{{- end -}}
{{- $serving := default dict $scorer.serving -}}
{{- if not $serving.colocate_with -}}
{{- $most := dig "max_replicas" (dig "replicas" 1 $serving) $serving -}}
{{- $share := dig "num_gpus" 0 $serving -}}
{{- $group := $gpu -}}
{{- if $serving.resource -}}
{{- if not (dig $serving.resource "resource" "" $groups) -}}
{{- fail (printf "scorer '%s' has resource = '%s', which is none of environments (%s): add it there or correct the name" $name $serving.resource (keys $.Values.environments | sortAlpha | join ", " | default "there are none")) -}}
{{- end -}}
{{- $group = index $groups $serving.resource -}}
{{- if gt (float64 $share) (float64 $group.gpus) -}}
{{- fail (printf "a replica of scorer '%s' asks for num_gpus = %v, a pod has environments.%s.gpus = %v: raise one or lower the other" $name $share $serving.resource $group.gpus) -}}
{{- end -}}
{{- end -}}
{{- if gt (float64 $share) (float64 $group.gpus) -}}
{{- fail (printf "a replica of scorer '%s' asks for num_gpus = %v, a pod has scorers.gpu.gpus = %v: raise one or lower the other" $name $share $gpu.gpus) -}}
{{- end -}}
{{- $_ := set $asked "num_gpus" (addf $asked.num_gpus (mulf $most $share)) -}}
{{- $_ := set $asked "num_cpus" (addf $asked.num_cpus (mulf $most (dig "num_cpus" 0.1 $serving))) -}}
{{- else if hasKey $serving "num_gpus" -}}
{{- fail (printf "scorer '%s' is colocated with '%s', which says what a replica takes: take num_gpus out (a profile's overrides by --set overrides=null)" $name $serving.colocate_with) -}}
{{- end -}}
{{- end -}}
{{- if gt $asked.num_gpus (float64 $gpus) -}}
{{- fail (printf "the scorers' replicas, max_replicas of them where that is set, may ask for %v GPUs; the pods have %v (scorers.gpu.%s = %v, each with scorers.gpu.gpus = %v): raise scorers.gpu.%s, or lower replicas, max_replicas or num_gpus of [scorers.*.serving]" $asked.num_gpus $gpus $field (index $gpu $field) $gpu.gpus $field) -}}
{{- end -}}
{{- if gt $asked.num_cpus (float64 $cpus) -}}
{{- fail (printf "the scorers' replicas, max_replicas of them where that is set, may ask for %v CPUs; the pods have %v (scorers.cpu and scorers.gpu, %s times logicalCpus): raise those, or lower replicas, max_replicas or num_cpus of [scorers.*.serving]" $asked.num_cpus $cpus $field) -}}
{{- end -}}
{{- end }}
