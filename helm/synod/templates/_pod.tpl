{{- /*
A pod template of a Ray cluster. Arguments: root; cluster (service, trainer); component; image and place (entries of the
values); resources; and optionally gpus, gpuResource, tokens (mount the tokens that gateways accept), token (mount the
release's own), checkpoints, ports, env, probes, exporter (command of the metrics container), automount, preStop, shmBytes
(of /dev/shm, beyond Ray's).

Do not use the chart's version here: KubeRay starts a second cluster for any change of a pod.

KubeRay writes the command of the first container. Liveness checks Ray's own health, so a replica that computes for long
is not killed; Serve replaces a dead replica.
*/}}
{{- define "synod.pod" -}}
{{- $root := .root -}}
{{- $values := .root.Values -}}
{{- $image := include "synod.image" (dict "root" .root "image" .image) -}}
metadata:
  labels:
    {{- include "synod.selector" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
    synod/cluster: {{ .cluster }}
    {{- with $values.pods.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $values.pods.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- if not .automount }}
  serviceAccountName: {{ include "synod.serviceAccount" .root | quote }}
  {{- end }}
  automountServiceAccountToken: {{ default false .automount }}
  enableServiceLinks: false
  terminationGracePeriodSeconds: 60
  {{- with $values.images.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.pods.priorityClassName }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  securityContext:
    {{- include "synod.podSecurity" .root | nindent 4 }}
  {{- if .exporter }}
  shareProcessNamespace: true # the exporter asks which replicas live
  {{- end }}
  {{- with .place.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .place.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .place.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.topologySpread.topologyKey }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: {{ . | quote }}
      whenUnsatisfiable: {{ $values.topologySpread.whenUnsatisfiable }}
      labelSelector:
        matchLabels:
          {{- include "synod.selector" $root | nindent 10 }}
          app.kubernetes.io/component: {{ $.component }}
  {{- end }}
  containers:
    - name: ray
      image: {{ $image | quote }}
      imagePullPolicy: {{ $values.images.pullPolicy }}
      securityContext:
        {{- include "synod.containerSecurity" .root | nindent 8 }}
      resources:
        {{- $resources := deepCopy .resources }}
        {{- if .gpus }}
        {{- $_ := set $resources "limits" (merge (dict .gpuResource (int64 .gpus)) (default dict $resources.limits)) }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      ports:
        {{- range .ports }}
        - {{ toJson . }}
        {{- end }}
        - {name: metrics, containerPort: 8080}
      env:
        - {name: RAY_USAGE_STATS_ENABLED, value: "0"}
        - {name: RAY_worker_niceness, value: "0"}
        - {name: HOME, value: /tmp}
        - {name: HF_HOME, value: /models/huggingface}
        - {name: TORCH_HOME, value: /models/torch}
        {{- with .env }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with $values.pods.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- range $kind, $probe := .probes }}
      {{ $kind }}: {{ toJson $probe }}
      {{- end }}
      {{- if .preStop }}
      lifecycle:
        preStop: {exec: {command: [sleep, {{ .preStop | quote }}]}}
      {{- end }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
        - {name: models, mountPath: /models}
        - {name: config, mountPath: {{ dir (include "synod.configPath" .root) }}, readOnly: true}
        {{- if eq .cluster "service" }}
        - {name: run, mountPath: /run/synod}
        - {name: counters, mountPath: /run/synod/metrics}
        {{- end }}
        {{- if .tokens }}
        - {name: tokens, mountPath: /etc/synod/tokens, readOnly: true}
        {{- end }}
        {{- if .token }}
        {{- include "synod.tokenMount" .root | nindent 8 }}
        {{- end }}
        {{- if .checkpoints }}
        - {name: checkpoints, mountPath: /checkpoints}
        {{- end }}
        {{- with $values.pods.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with .exporter }}
    - name: metrics
      image: {{ $image | quote }}
      imagePullPolicy: {{ $values.images.pullPolicy }}
      command: {{ toJson . }}
      securityContext:
        {{- include "synod.containerSecurity" $root | nindent 8 }}
      resources:
        {{- toYaml $values.pods.metrics.resources | nindent 8 }}
      ports:
        - {name: synod-metrics, containerPort: 8001}
      {{- if not $.checkpoints }}
      env:
        - {name: PROMETHEUS_MULTIPROC_DIR, value: /run/synod/metrics}
      {{- end }}
      {{- range $kind := list "livenessProbe" "readinessProbe" }}
      {{ $kind }}: {httpGet: {path: /healthz, port: synod-metrics}, periodSeconds: 10, timeoutSeconds: 5, failureThreshold: 6}
      {{- end }}
      volumeMounts:
        {{- if $.checkpoints }}
        - {name: checkpoints, mountPath: /checkpoints, readOnly: true}
        {{- else }}
        - {name: counters, mountPath: /run/synod/metrics}
        {{- end }}
    {{- end }}
  volumes:
    - {name: tmp, emptyDir: {sizeLimit: {{ $values.pods.tmpSize | quote }}}}
    - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ add (int64 $values.ray.objectStoreBytes) 134217728 (default 0 .shmBytes) }}}}
    - name: models
      {{- if $values.models.cache.enabled }}
      persistentVolumeClaim: {claimName: {{ include "synod.modelsClaim" .root | quote }}}
      {{- else }}
      emptyDir: {}
      {{- end }}
    - name: config
      configMap: {name: {{ include "synod.fullname" .root }}-config}
    {{- if eq .cluster "service" }}
    - {name: run, emptyDir: {}}
    - {name: counters, emptyDir: {}}
    {{- end }}
    {{- if .tokens }}
    - name: tokens
      secret:
        secretName: {{ include "synod.tokensSecret" .root | quote }}
        items: [{key: tokens.toml, path: tokens.toml}]
    {{- end }}
    {{- if .token }}
    {{- include "synod.tokenVolume" .root | nindent 4 }}
    {{- end }}
    {{- if .checkpoints }}
    - name: checkpoints
      persistentVolumeClaim: {claimName: {{ include "synod.checkpointsClaim" .root | quote }}}
    {{- end }}
    {{- with $values.pods.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- /* Probe of Ray's health on a head or worker: the agent reports on the raylet, and on the head also on the GCS. */}}
{{- define "synod.rayProbes" -}}
{{- $check := dict "path" "/api/healthz" "port" 52365 -}}
{{- dict
  "startupProbe" (dict "httpGet" $check "periodSeconds" 5 "timeoutSeconds" 5 "failureThreshold" 60)
  "livenessProbe" (dict "httpGet" $check "periodSeconds" 10 "timeoutSeconds" 5 "failureThreshold" 12)
  "readinessProbe" (dict "httpGet" $check "periodSeconds" 10 "timeoutSeconds" 5 "failureThreshold" 3)
  | toJson -}}
{{- end }}

{{- /* A gateway becomes ready when all scorers are. After that it stays ready while it answers: a lost scorer replica is a
typed failure for callers and must not take the Service down. */}}
{{- define "synod.gatewayProbes" -}}
{{- dict
  "startupProbe" (dict "httpGet" (dict "path" "/readyz" "port" "http") "periodSeconds" 5 "timeoutSeconds" 5 "failureThreshold" (div .Values.gateway.startupSeconds 5))
  "livenessProbe" (dict "httpGet" (dict "path" "/api/healthz" "port" 52365) "periodSeconds" 10 "timeoutSeconds" 5 "failureThreshold" 12)
  "readinessProbe" (dict "httpGet" (dict "path" "/healthz" "port" "http") "periodSeconds" 5 "timeoutSeconds" 5 "failureThreshold" 3)
  | toJson -}}
{{- end }}

{{- /* KubeRay takes its Services' ports from the head and needs one named serve to reconcile a RayService. Nothing listens
on it: gateways have the chart's own Service. */}}
{{- define "synod.headPorts" -}}
{{- list
  (dict "name" "gcs-server" "containerPort" 6379)
  (dict "name" "dashboard" "containerPort" 8265)
  (dict "name" "serve" "containerPort" 8000)
  | toJson -}}
{{- end }}

{{- /* The part of a Ray cluster that service and trainer share. */}}
{{- define "synod.rayCluster" -}}
rayVersion: {{ include "synod.rayVersion" . }}
authOptions:
  mode: token
  {{- with .Values.ray.authSecret }}
  secretName: {{ . | quote }}
  {{- end }}
{{- end }}

{{- define "synod.rayStart" -}}
object-store-memory: {{ .Values.ray.objectStoreBytes | int64 | toString | quote }}
{{- end }}
