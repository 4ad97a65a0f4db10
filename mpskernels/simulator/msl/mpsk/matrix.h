// Matrices of columns (<metal_matrix>).
#pragma once

MPSK_BEGIN

template <typename T, int columns, int rows> struct matrix {
  static_assert(is_same_v<T, float> || is_same_v<T, half>, "a matrix is of float or half");
  vec<T, rows> column[columns];

  matrix() = default;
  // The scalar on the diagonal.
  explicit constexpr matrix(T scalar) : column{} {
    for (int i = 0; i < columns && i < rows; i++) column[i][i] = scalar;
  }
  template <typename U, enable_if_t<!is_same_v<T, U>, int> = 0>
  explicit constexpr matrix(matrix<U, columns, rows> m) : column{} {
    for (int i = 0; i < columns; i++) column[i] = vec<T, rows>(m.column[i]);
  }
  template <typename... A, enable_if_t<sizeof...(A) == columns &&
                                           (... && is_same_v<typename mpsk_vector::operand<A>::vector, vec<T, rows>>),
                                       int> = 0>
  constexpr matrix(A... c) : column{vec<T, rows>(c)...} {}
  template <typename... A,
            enable_if_t<sizeof...(A) == columns * rows && (... && (mpsk_vector::pieces<T, A> == 1)), long> = 0>
  constexpr matrix(A... scalars) : column{} {
    int i = 0;
    ((column[i / rows][i % rows] = T(scalars), i++), ...);
  }
  constexpr vec<T, rows>& operator[](size_t i) { return column[i]; }
  constexpr const vec<T, rows>& operator[](size_t i) const { return column[i]; }

  constexpr matrix& operator+=(matrix b) { return *this = *this + b; }
  constexpr matrix& operator-=(matrix b) { return *this = *this - b; }
  constexpr matrix& operator*=(T b) { return *this = *this * b; }
  constexpr matrix& operator*=(matrix<T, columns, columns> b) { return *this = *this * b; }
};

#define MPSK_COLUMNS(T, c, r, value)               \
  matrix<T, c, r> m;                               \
  for (int i = 0; i < c; i++) m.column[i] = value; \
  return m;
template <typename T, int c, int r> matrix<T, c, r> operator+(matrix<T, c, r> a, matrix<T, c, r> b) {
  MPSK_COLUMNS(T, c, r, a.column[i] + b.column[i])
}
template <typename T, int c, int r> matrix<T, c, r> operator-(matrix<T, c, r> a, matrix<T, c, r> b) {
  MPSK_COLUMNS(T, c, r, a.column[i] - b.column[i])
}
template <typename T, int c, int r> matrix<T, c, r> operator-(matrix<T, c, r> a) { MPSK_COLUMNS(T, c, r, -a.column[i]) }
template <typename T, int c, int r> matrix<T, c, r> operator*(matrix<T, c, r> a, mpsk_type::identity_t<T> b) {
  MPSK_COLUMNS(T, c, r, a.column[i] * b)
}
template <typename T, int c, int r> matrix<T, c, r> operator*(mpsk_type::identity_t<T> a, matrix<T, c, r> b) {
  MPSK_COLUMNS(T, c, r, a * b.column[i])
}
template <typename T, int c, int r> vec<T, r> operator*(matrix<T, c, r> a, mpsk_type::identity_t<vec<T, c>> b) {
  vec<T, r> sum = a.column[0] * b[0];
  for (int i = 1; i < c; i++) sum = sum + a.column[i] * b[i];
  return sum;
}
template <typename T, int c, int r> vec<T, c> operator*(mpsk_type::identity_t<vec<T, r>> a, matrix<T, c, r> b) {
  vec<T, c> v;
  for (int i = 0; i < c; i++) v[i] = dot(a, b.column[i]);
  return v;
}
template <typename T, int k, int r, int c> matrix<T, c, r> operator*(matrix<T, k, r> a, matrix<T, c, k> b) {
  MPSK_COLUMNS(T, c, r, a * b.column[i])
}
template <typename T, int c, int r> bool operator==(matrix<T, c, r> a, matrix<T, c, r> b) {
  for (int i = 0; i < c; i++) {
    if (!all(a.column[i] == b.column[i])) return false;
  }
  return true;
}
template <typename T, int c, int r> bool operator!=(matrix<T, c, r> a, matrix<T, c, r> b) { return !(a == b); }
#undef MPSK_COLUMNS

template <typename T, int c, int r> matrix<T, r, c> transpose(matrix<T, c, r> a) {
  matrix<T, r, c> m;
  for (int i = 0; i < r; i++) {
    for (int j = 0; j < c; j++) m.column[i][j] = a.column[j][i];
  }
  return m;
}
template <typename T> T determinant(matrix<T, 2, 2> m) {
  return m.column[0].x * m.column[1].y - m.column[1].x * m.column[0].y;
}
template <typename T> T determinant(matrix<T, 3, 3> m) { return dot(m.column[0], cross(m.column[1], m.column[2])); }
// Along the first row.
template <typename T> T determinant(matrix<T, 4, 4> m) {
  T sum = T(0.0f);
  for (int i = 0; i < 4; i++) {
    matrix<T, 3, 3> minor;
    for (int j = 0; j < 3; j++) minor.column[j] = m.column[j < i ? j : j + 1].yzw;
    T term = m.column[i].x * determinant(minor);
    sum += i % 2 ? -term : term;
  }
  return sum;
}

MPSK_END

#define MPSK_MATRICES(T, name) \
  MPSK_MATRIX(T, name, 2, 2)   \
  MPSK_MATRIX(T, name, 2, 3)   \
  MPSK_MATRIX(T, name, 2, 4)   \
  MPSK_MATRIX(T, name, 3, 2)   \
  MPSK_MATRIX(T, name, 3, 3)   \
  MPSK_MATRIX(T, name, 3, 4)   \
  MPSK_MATRIX(T, name, 4, 2)   \
  MPSK_MATRIX(T, name, 4, 3)   \
  MPSK_MATRIX(T, name, 4, 4)
#define MPSK_MATRIX(T, name, c, r)       \
  namespace metal {                      \
  typedef matrix<T, c, r> name##c##x##r; \
  }                                      \
  using metal::name##c##x##r;
MPSK_MATRICES(float, float)
#undef half
MPSK_MATRICES(_Float16, half)
#define half _Float16
#undef MPSK_MATRICES
#undef MPSK_MATRIX
